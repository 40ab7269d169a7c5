"""A whole run over three sites' folders, in this process: each has but its own data, and its own rules win."""

import shutil

import pytest
from flwr.common.serde import recorddict_from_proto
from flwr.proto.recorddict_pb2 import RecordDict as Proto
from safetensors.torch import load_file

from clients.manifest import Manifest
from fed_distill.data import load
from fed_distill.errors import BudgetExceeded, ConfigError, DataError
from fed_distill.privacy.ledger import Ledgers
from fed_distill.results.store import read_summary
from fed_distill.transport.requests import QUERY_MERCHANTS

PRIVATE = {"unit": "example", "epsilon": 4.0, "batch_size": 16}


def student(folder):
    return load_file(folder / "student" / "model.safetensors")


def allow(deployment, name, old, new):
    path = deployment / "sites" / name / "site.toml"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_the_student_is_the_simulations_and_no_row_is_ever_sent(run_over, deployment, experiment, simulate, distance):
    private = experiment.with_changes({"privacy": PRIVATE})
    there, wire = run_over(private.with_changes({"name": "there"}))
    here = simulate(private.with_changes({"name": "there", "runtime.folder": str(deployment / "here")}))[0]
    assert distance(student(there), student(here)) < 1e-5
    assert read_summary(there)["privacy"]["epsilon"] == read_summary(here)["privacy"]["epsilon"]
    sent = b"".join(request + reply for _, request, reply in wire)
    for merchant in load(experiment.data).merchants.values():
        for text in (*merchant.train.texts, *merchant.train.pairs, *merchant.test.pairs):
            assert text.encode() not in sent
    announced = [
        set(recorddict_from_proto(Proto.FromString(reply))["merchants"]["names"])
        for kind, _, reply in wire
        if kind == QUERY_MERCHANTS
    ]
    for site, names in zip(sorted(deployment.glob("sites/*/site.toml")), announced, strict=True):
        assert names == set(Manifest.read(site).read_data().merchants)
        assert set(Ledgers(Manifest.read(site).ledgers).merchants()) == names


def test_a_secret_of_the_site_changes_its_noise_and_is_never_sent(run_over, deployment, experiment, distance):
    private = experiment.with_changes({"privacy": PRIVATE, "federation.rounds": 1, "adaptation.enabled": False})

    def trained(name):
        for site in deployment.glob("sites/*"):  # in a ledger's second release the noise is another in any case
            shutil.rmtree(site / "state", ignore_errors=True)
        folder, wire = run_over(private.with_changes({"name": name, "runtime.folder": str(deployment / name)}))
        return student(folder), wire

    plain, _ = trained("first")
    for name in ("north", "south", "west"):
        allow(deployment, name, "# secret =", "secret =")
    own, wire = trained("second")
    assert distance(own, plain) > 1e-3
    sent = b"".join(request + reply for _, request, reply in wire)
    for site in deployment.glob("sites/*/noise.key"):
        assert site.read_bytes().strip() not in sent
    again, _ = trained("third")
    assert distance(again, own) == 0.0  # an equal request has an equal answer


def test_a_site_that_refuses_names_its_rule_and_the_others_go_on(run_over, deployment, experiment, caplog):
    allow(deployment, "north", "max_rounds = 100", "max_rounds = 1")
    folder, _ = run_over(experiment)
    refused = sorted(Manifest.read(deployment / "sites" / "north" / "site.toml").read_data().merchants)
    for merchant in refused:
        assert f"merchant {merchant}: not allowed by its site, rule max_rounds: 1 in a federation, not 2" in caplog.text
    assert (folder / "report.html").is_file()


def test_a_federation_that_every_site_refuses_is_no_result(run_over, deployment, experiment):
    for name in ("north", "south", "west"):
        allow(deployment, name, '"fedavg-kd", ', "")
    refused = "round 1: no merchant may take part any more; merchant .* rule methods: .* not 'fedavg-kd'"
    with pytest.raises(BudgetExceeded, match=refused):
        run_over(experiment)


def test_what_is_only_compared_and_every_site_refuses_is_left_out(run_over, deployment, experiment):
    for name in ("north", "south", "west"):
        allow(deployment, name, '"fedavg", ', "")
    folder, _ = run_over(experiment.with_changes({"controls": ["fedavg"], "compare": [{"method": "fedprox"}]}))
    assert set(read_summary(folder)["federations"]) == {"fedavg-kd", "fedprox"}
    assert not read_summary(folder)["controls"]


def test_another_proxy_set_at_a_site_is_found_before_the_first_round(run_over, experiment):
    other = experiment.with_changes({"data.proxy_size": experiment.data.proxy_size - 1})
    with pytest.raises(
        DataError,
        match=r"another proxy set than the server: give it this experiment's proxy\.json",
    ):
        run_over(other)


def test_a_server_without_any_merchants_rows_trains_with_sites_that_bring_their_own(
    command, tiny_experiment, tmp_path, deployment, run_over
):
    """The server has the marketplace of another seed, all of it public; sites keep the tables they were dealt."""
    changes = {"controls": ["server", "local"], "data.clients": "elsewhere", "data.seed": 1}
    experiment = tiny_experiment(tmp_path / "runs", changes)
    file = tmp_path / "server.toml"
    file.write_text(experiment.to_toml(), encoding="utf-8")
    for proxy in deployment.glob("sites/*/proxy.json"):
        proxy.unlink()
    command("init", deployment, "--sites", "north,south,west", "--experiment", file)
    folder, _ = run_over(experiment)
    summary = read_summary(folder)
    data = load(experiment.data)
    assert not data.merchants and len(data.valid) and len(data.test)
    assert summary["merchants"] == 5
    assert set(summary["controls"]) >= {"server", "local"}
    assert 0.0 < summary["student"]["ndcg@10"] <= 1.0


def test_data_that_are_elsewhere_can_neither_be_pooled_nor_dealt(command, tiny_experiment, tmp_path):
    with pytest.raises(ConfigError, match="leaves nothing to pool"):
        tiny_experiment(tmp_path, {"data.clients": "elsewhere"})
    file = tmp_path / "server.toml"
    changes = {"data.clients": "elsewhere", "controls": ["server"]}
    file.write_text(tiny_experiment(tmp_path, changes).to_toml(), encoding="utf-8")
    with pytest.raises(ConfigError, match="no merchants to deal"):
        command("init", tmp_path / "made", "--sites", "a", "--experiment", file, "--rehearse")
