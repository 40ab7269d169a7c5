"""What a site tells its own people: counts that outlive processes, budgets as its ledgers have them, and no data."""

import json
import multiprocessing
import shutil
import sys
import urllib.request
from collections import Counter

import pytest
from prometheus_client.parser import text_string_to_metric_families
from typer.testing import CliRunner

from fed_distill import logs
from fed_distill.cli.main import app as command_line
from fed_distill.endpoint import Endpoint
from fed_distill.errors import ConfigError, DataError
from fed_distill.merchant import metrics as site_metrics
from fed_distill.merchant.manifest import Manifest
from fed_distill.merchant.metrics import SiteMetrics, Tally
from fed_distill.merchant.observing import hidden, metrics_of
from fed_distill.privacy.ledger import Ledgers, exposure
from fed_distill.reporting.store import read_records

PRIVATE = {"privacy": {"unit": "example", "epsilon": 4.0, "batch_size": 16}}


@pytest.fixture(autouse=True)
def open_sites(permit):
    """Sites that allow the runs of these tests, with and without privacy."""
    permit("units", 'units = ["none", "example"]')
    permit("scores", "scores = true")


@pytest.fixture
def experiment(experiment):
    """Without what comes after the rounds."""
    return experiment.with_changes({"adaptation.enabled": False, "runtime.measure_speed": False})


def watch(deployment, name, style="text", metrics="true"):
    path = deployment / "sites" / name / "site.toml"
    text = path.read_text(encoding="utf-8")
    changed = text.replace("metrics = false", f"metrics = {metrics}").replace('logs = "text"', f'logs = "{style}"')
    assert changed != text
    path.write_text(changed, encoding="utf-8")
    return Manifest.read(path)


def parsed(text):
    samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = {key: value for key, value in sample.labels.items() if key != "site"}
            samples[sample.name.removeprefix("fed_distill_"), *labels.values()] = sample.value
    return samples


def asked_of(endpoint):
    with urllib.request.urlopen(f"http://127.0.0.1:{endpoint.port}/metrics") as answer:
        return parsed(answer.read().decode())


def file_of(manifest):
    return parsed((manifest.folder / "state" / "metrics" / "fed_distill.prom").read_text(encoding="utf-8"))


def test_a_site_counts_what_it_trained_and_what_was_spent(run_over, deployment, experiment):
    manifest = watch(deployment, "north")
    folder, wire = run_over(experiment.with_changes(PRIVATE))
    merchants, samples = manifest.read_data().merchants, file_of(manifest)
    assert samples["site_trained_total",] == 2 * len(merchants)
    assert samples["site_messages_total",] == len([one for one in wire if one[2]]) / 3
    assert samples["site_errors_total",] == 0
    lines = read_records(folder)
    assert 0 < samples["site_uplink_bytes_total",] < sum(line["total_bytes"]["uplink"] for line in lines)
    for merchant in merchants:
        spent = Ledgers(manifest.ledgers).of(merchant).epsilon("example")
        assert samples["epsilon_spent", merchant, "example"] == spent > 0
        exposed = exposure(entry.charge for entry in Ledgers(manifest.ledgers).of(merchant).entries())
        assert samples["epsilon_left", merchant] == pytest.approx(8.0 - exposed)
    assert not (deployment / "sites" / "south" / "state" / "metrics").exists()


def test_counts_outlive_the_process_that_counted(run_over, deployment, experiment):
    """Flower starts a process for each message; here each run has an app of its own."""
    manifest = watch(deployment, "north")
    run_over(experiment)
    once = file_of(manifest)
    run_over(experiment.with_changes({"name": "again"}))
    twice = file_of(manifest)
    for name in ("site_trained_total", "site_messages_total", "site_uplink_bytes_total"):
        assert twice[name,] == 2 * once[name,] > 0


def test_refusals_are_counted_by_rule(run_over, deployment, experiment):
    manifest = watch(deployment, "north")
    path = manifest.folder / "site.toml"
    path.write_text(path.read_text(encoding="utf-8").replace("max_rounds = 100", "max_rounds = 1"), encoding="utf-8")
    run_over(experiment)
    samples = file_of(manifest)
    assert samples["site_trained_total",] == 0
    assert samples["site_refused_total", "max_rounds"] == 2 * len(manifest.read_data().merchants)
    assert (
        sum(value for key, value in samples.items() if key[0] == "site_refused_total")
        == samples["site_refused_total", "max_rounds"]
    )


def test_scores_are_counted_as_told_or_refused(run_over, deployment, experiment, permit):
    manifest, south = watch(deployment, "north"), watch(deployment, "south")
    permit("scores", "scores = false", "south")
    run_over(experiment)
    for told, samples in ((True, file_of(manifest)), (False, file_of(south))):
        assert (samples["site_scored_total",] > 0) is told
        assert (samples["site_refused_total", "scores"] > 0) is not told


def test_they_are_served_with_budgets_as_the_ledgers_have_them_now(run_over, deployment, experiment):
    manifest = watch(deployment, "north")
    run_over(experiment.with_changes(PRIVATE))
    ledgers = Ledgers(manifest.ledgers)
    first, *_ = ledgers.files()
    first.write_bytes(first.read_bytes()[:-5])
    with Endpoint(metrics_of(manifest).registry(), 0) as endpoint:
        samples = asked_of(endpoint)
    assert samples["site_ledgers_damaged",] == 1
    assert samples["site_trained_total",] == file_of(manifest)["site_trained_total",]
    told = [key for key in samples if key[0] == "epsilon_spent"]
    assert len(told) == len(ledgers.files()) - 1


def test_the_command_serves_a_site_until_it_is_interrupted(deployment, monkeypatch):
    watch(deployment, "north")
    asked = []

    def interrupted(endpoint):
        asked.append(asked_of(endpoint))
        raise KeyboardInterrupt

    monkeypatch.setattr(Endpoint, "wait", interrupted)
    words = ["sites", "metrics", str(deployment / "sites" / "north"), "--port", "0"]
    done = CliRunner().invoke(command_line, words, catch_exceptions=False)
    assert done.exit_code == 0 and "metrics of north: http://127.0.0.1:" in done.output
    assert asked[0]["site_trained_total",] == 0
    with pytest.raises(ConfigError, match=r"set metrics = true in its \[observing\]"):
        CliRunner().invoke(command_line, [*words[:2], str(deployment / "sites" / "south")], catch_exceptions=False)


def test_metrics_without_their_library_are_a_mistake_that_is_named(deployment, monkeypatch):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(ConfigError, match=r"pip install fed-distill\[metrics\]"):
        watch(deployment, "north")


def test_metrics_that_cannot_be_written_change_no_answer(run_over, deployment, experiment, monkeypatch, caplog):
    watch(deployment, "north")

    def full(path, content):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(site_metrics, "write_atomic", full)
    folder, _ = run_over(experiment)
    assert [line["merchants"] for line in read_records(folder)] == [5, 5]
    assert any("metrics could not be written" in line and "No space left" in line for line in caplog.messages)


def add(folder, times):
    metrics = SiteMetrics(folder, "north", folder / "ledgers", lambda _: None)
    for _ in range(times):
        metrics.add(Tally(trained=1, refused=Counter(hours=2)))


def test_no_count_is_lost_between_processes(tmp_path):
    spawn = multiprocessing.get_context("fork")
    processes = [spawn.Process(target=add, args=(tmp_path, 20)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    counts = json.loads((tmp_path / "counts.json").read_text(encoding="utf-8"))
    assert (counts["trained"], counts["refused"]) == (60, {"hours": 120})


def test_a_sites_json_log_holds_no_data_of_its_merchants(run_over, deployment, experiment, capfd):
    manifest = watch(deployment, "north", "json", "false")
    texts = {
        text
        for merchant in manifest.read_data().merchants.values()
        for part in (merchant.train, merchant.valid, merchant.test)
        for text in (*part.texts, *part.pairs)
    }
    try:
        run_over(experiment.with_changes(PRIVATE))
        table = manifest.folder / "data.jsonl"
        shutil.copy(table, manifest.folder / "whole.jsonl")
        table.write_text(table.read_text(encoding="utf-8").replace('"exact"', '"a secret grade"', 1), encoding="utf-8")
        run_over(experiment.with_changes({**PRIVATE, "name": "broken"}))
    finally:
        while logs._installed:
            logs._installed.pop().remove()
    errors = capfd.readouterr().err
    lines = [json.loads(line) for line in errors.splitlines()]
    mine = [line for line in lines if line.get("site") == "north"]
    assert {line["message"] for line in mine} >= {
        f"received a message of type {kind}.merchants" for kind in ("query", "train")
    }
    assert len(texts) > 50 and not [text for text in texts if text in errors]


def test_the_server_is_told_the_kind_of_an_error_and_nothing_that_it_quotes(caplog):
    error = DataError("/srv/acme/train.csv, row 17: 'secret offer' is not a class of relevance")
    assert str(hidden(error)) == "DataError; see the site's log and `fed-distill sites check`"
    (record,) = caplog.records
    assert record.exc_info[1] is error
    assert "secret offer" not in logs.JsonLines(private=True).format(record)
