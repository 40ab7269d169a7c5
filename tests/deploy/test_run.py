"""A whole run over three sites' folders, in this process: each has but its own data, and its own rules win."""

import shutil

import pytest
import torch
from flwr.common.serde import recorddict_from_proto
from flwr.proto.recorddict_pb2 import RecordDict as Proto
from safetensors.torch import load_file

from fed_distill.data import load
from fed_distill.errors import BudgetExceeded, ConfigError, DataError
from fed_distill.merchant.manifest import Manifest
from fed_distill.privacy.ledger import Ledgers
from fed_distill.reporting.store import read_summary
from fed_distill.transport.requests import QUERY_MERCHANTS

PRIVATE = {"unit": "example", "epsilon": 4.0, "batch_size": 16}


def student(folder):
    return load_file(folder / "student" / "model.safetensors")


def allow(deployment, name, old, new):
    path = deployment / "sites" / name / "site.toml"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_the_student_is_the_simulations_and_no_row_is_ever_sent(
    run_over, deployment, experiment, simulate, distance, permit
):
    permit("units", 'units = ["example"]')
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


def test_the_noise_of_training_is_drawn_from_the_sites_secret_which_is_never_sent(
    run_over, deployment, experiment, permit, monkeypatch
):
    """All else that noise is drawn from is made equal, as somebody would guess it who knows the run, its seed and the
    request: one full batch, sizes without noise, and the same digest whatever the secret."""
    monkeypatch.setattr("fed_distill.mechanisms.digests.Digests.of", lambda *_: "ab" * 32)
    monkeypatch.setattr(
        "fed_distill.mechanisms.release.Protection._noised_size", lambda _, learner, __: learner.members()
    )
    private = {"unit": "example", "noise_multiplier": 50.0, "batch_size": 10**6}
    once = {"federation.rounds": 1, "federation.options": {"proxy_steps": 0}, "adaptation.enabled": False}
    asked = experiment.with_changes({"privacy": private, **once})
    permit("units", 'units = ["example"]')

    def moved(name):
        """How far the round moved the student, which is noise but for a few per cent; and what was on the wire."""
        for site in deployment.glob("sites/*"):
            shutil.rmtree(site / "state", ignore_errors=True)
        folder, wire = run_over(asked.with_changes({"name": name, "runtime.folder": str(deployment / name)}))
        start = load_file(folder / "checkpoint" / "seed-0" / "server" / "two-tower" / "final.safetensors")
        found = torch.cat([(value - start[key]).flatten() for key, value in sorted(student(folder).items())])
        return found / found.norm(), b"".join(request + reply for _, request, reply in wire)

    plain, _ = moved("first")
    assert float(plain @ moved("second")[0]) > 0.999  # without secrets the run's seed gives the same again
    for name in ("north", "south", "west"):
        allow(deployment, name, "# secret =", "secret =")
    own, sent = moved("third")
    assert abs(float(own @ plain)) < 0.2
    secrets = {site: site.read_bytes().strip() for site in deployment.glob("sites/*/noise.key")}
    assert len(secrets) == 3 and not any(secret in sent for secret in secrets.values())
    again, _ = moved("fourth")
    assert float(again @ own) > 0.999
    for site in secrets:
        site.unlink()  # others are made at the next run
    other, _ = moved("fifth")
    assert abs(float(other @ own)) < 0.2 and abs(float(other @ plain)) < 0.2


def test_a_site_that_refuses_names_its_rule_and_the_others_go_on(run_over, deployment, experiment, caplog):
    allow(deployment, "north", "max_rounds = 100", "max_rounds = 1")
    folder, _ = run_over(experiment)
    refused = sorted(Manifest.read(deployment / "sites" / "north" / "site.toml").read_data().merchants)
    for merchant in refused:
        assert (
            f"merchant {merchant}: not allowed by its site, rule max_rounds: at most 1 in a federation, not 2"
            in caplog.text
        )
    assert (folder / "report.html").is_file()


def test_a_federation_that_every_site_refuses_is_no_result(run_over, deployment, experiment):
    for name in ("north", "south", "west"):
        allow(deployment, name, 'methods = ["fedavg-kd"]', "methods = []")
    refused = "round 1: no merchant can participate any more; merchant .* rule methods: .* not 'fedavg-kd'"
    with pytest.raises(BudgetExceeded, match=refused):
        run_over(experiment)


def test_what_is_only_compared_and_every_site_refuses_is_left_out(run_over, deployment, experiment):
    for name in ("north", "south", "west"):
        allow(deployment, name, 'methods = ["fedavg-kd"]', 'methods = ["fedavg-kd", "fedprox"]')
    folder, _ = run_over(experiment.with_changes({"controls": ["fedavg"], "compare": [{"method": "fedprox"}]}))
    assert set(read_summary(folder)["federations"]) == {"fedavg-kd", "fedprox"}
    assert not read_summary(folder)["controls"]


def test_another_proxy_set_at_a_site_is_found_before_the_first_round(run_over, experiment):
    other = experiment.with_changes({"data.proxy_size": experiment.data.proxy_size - 1})
    with pytest.raises(
        DataError,
        match=r"another proxy set than the server: install this experiment's proxy\.json",
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
    done = command("init", deployment, "--sites", "north,south,west", "--experiment", file)
    assert done.output.count("was kept and does not allow local") == 3
    for name in ("north", "south", "west"):
        allow(deployment, name, 'methods = ["fedavg-kd"]', 'methods = ["fedavg-kd", "local"]')
    folder, _ = run_over(experiment)
    summary = read_summary(folder)
    data = load(experiment.data)
    assert not data.merchants and len(data.valid) and len(data.test)
    assert summary["merchants"] == 5
    assert set(summary["controls"]) >= {"server", "local"}
    assert 0.0 < summary["student"]["ndcg@10"] <= 1.0


def test_data_that_are_elsewhere_can_neither_be_pooled_nor_dealt(command, tiny_experiment, tmp_path):
    with pytest.raises(ConfigError, match="requires the clients' data"):
        tiny_experiment(tmp_path, {"data.clients": "elsewhere"})
    file = tmp_path / "server.toml"
    changes = {"data.clients": "elsewhere", "controls": ["server"]}
    file.write_text(tiny_experiment(tmp_path, changes).to_toml(), encoding="utf-8")
    with pytest.raises(ConfigError, match="no merchants to assign"):
        command("init", tmp_path / "made", "--sites", "a", "--experiment", file, "--rehearse")


def test_a_private_run_at_sites_as_they_are_shipped_computes_nothing_unprotected(
    command, run_over, experiment, tmp_path, caplog
):
    """The controls that merchants train are left out, no score is told, and the run's own limits cover it."""
    private = {**PRIVATE, "report_scores": True}
    changes = {
        "privacy": private,
        "controls": ["server", "local", "fedavg"],
        "compare": [{"method": "fedprox"}],
        "adaptation.personal": True,
    }
    planned = experiment.with_changes(changes)
    file, folder = tmp_path / "private.toml", tmp_path / "deployment"
    file.write_text(planned.to_toml(), encoding="utf-8")
    done = command("init", folder, "--overwrite", "--experiment", file, "--rehearse", "--sites", "north,south,west")
    assert done.exit_code == 0
    with caplog.at_level("INFO"):
        summary = read_summary(run_over(planned)[0])
    assert set(summary["controls"]) == {"server"}
    assert set(summary["federations"]) == {"fedavg-kd", "fedprox"}
    assert not any(summary["by_merchant"]["federations"].values())
    assert {row["merchant_accuracy"] for row in summary["federations"].values()} == {None}
    assert summary["adaptation"]["personal"] is None
    assert "no test scores of fedavg-kd are reported: rule scores" in caplog.text
    for merchant in load(experiment.data).merchants:
        assert merchant not in summary["by_merchant"]["controls"]["server"]
