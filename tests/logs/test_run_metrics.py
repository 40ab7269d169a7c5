"""The server's metrics are what ``metrics.jsonl`` and the wire say, as a file and over HTTP; no merchant is in them."""

import socket
import sys
import urllib.error
import urllib.request

import pytest
from flwr.common.serde import recorddict_from_proto
from flwr.proto.recorddict_pb2 import RecordDict as Proto
from prometheus_client.parser import text_string_to_metric_families

from fed_distill.data import load
from fed_distill.errors import ConfigError
from fed_distill.reporting import run_metrics
from fed_distill.reporting.callbacks import CallbackList
from fed_distill.reporting.run_metrics import RunMetrics
from fed_distill.reporting.store import read_records, read_summary
from fed_distill.transport.records import by_prefix, serialized_bytes
from fed_distill.transport.requests import ANSWER, TRAIN


def parsed(text):
    """Every sample by name and labels."""
    families = text_string_to_metric_families(text)
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def of(samples, name, **labels):
    return samples[name, tuple(sorted(labels.items()))]


def record(number, **changes):
    return {
        "seed": 0, "federation": "fedmd", "round": number, "rounds": 3, "merchants": 4, "rejected": 0, "causes": {},
        "bytes": {"downlink": 10.0, "uplink": 2.5}, "total_bytes": {"downlink": 40, "uplink": 10}, "seconds": 2.0,
        **changes,
    }  # fmt: skip


@pytest.fixture(scope="module")
def measured(tiny_experiment, simulate, tmp_path_factory):
    """One run of five merchants that the callback followed: its folder, the samples of its file, and the wire."""
    changes = {"controls": ["fedavg"], "federation.method": "fedmd", "federation.options": {}, "runtime.sites": 2}
    experiment = tiny_experiment(tmp_path_factory.mktemp("runs"), changes)
    with CallbackList([RunMetrics()]) as callbacks:
        folder, grid = simulate(experiment, sites=2, callbacks=callbacks.callbacks)
    return folder, parsed((folder / "metrics.prom").read_text(encoding="utf-8")), grid.wire


def sent(wire, arm):
    """Serialized bytes of an arm's uplinks, each taken from its site's reply, of which what it answers to is none."""
    total = 0
    for kind, request, reply in wire:
        asked = recorddict_from_proto(Proto.FromString(request)).config_records
        if kind == TRAIN and asked["request"]["arm"] == arm:
            parts = by_prefix(recorddict_from_proto(Proto.FromString(reply)))
            total += sum(serialized_bytes(part) for prefix, part in parts.items() if prefix != ANSWER)
    return total


@pytest.mark.parametrize("arm", ["fedmd", "fedavg"])
def test_bytes_are_those_of_the_wire_and_of_the_summary(measured, arm):
    folder, samples, wire = measured
    where = {"run": "tiny", "federation": arm, "seed": "0"}
    assert of(samples, "fed_distill_uplink_bytes_total", **where) == sent(wire, arm) > 0
    summary = read_summary(folder)
    row = summary["federations" if arm == "fedmd" else "controls"][arm]
    for way in ("uplink", "downlink"):
        mean = of(samples, f"fed_distill_{way}_bytes_total", **where) / (5 * 2)
        assert round(mean) == row["bytes"][f"{way}_per_merchant_round"]


@pytest.mark.parametrize("arm", ["fedmd", "fedavg"])
def test_rounds_merchants_and_times_are_those_of_the_run(measured, arm):
    folder, samples, _ = measured
    where = {"run": "tiny", "federation": arm, "seed": "0"}
    lines = [line for line in read_records(folder) if line["federation"] == arm]
    seconds = of(samples, "fed_distill_round_seconds_sum", **where)
    assert seconds == pytest.approx(sum(line["seconds"] for line in lines))
    assert of(samples, "fed_distill_round_seconds_count", **where) == len(lines) == 2
    assert of(samples, "fed_distill_round", **where) == of(samples, "fed_distill_rounds_planned", **where) == 2
    assert of(samples, "fed_distill_merchants_merged", **where) == 5
    assert of(samples, "fed_distill_uplinks_merged_total", **where) == 10
    assert of(samples, "fed_distill_uplinks_rejected_total", **where, reason="fault") == 0
    assert of(samples, "fed_distill_run_active", run="tiny") == 0


def test_no_merchant_and_no_epsilon_is_among_them(measured):
    folder, samples, _ = measured
    text = (folder / "metrics.prom").read_text(encoding="utf-8")
    names = read_summary(folder)["by_merchant"]["counts"]
    assert len(names) == 5 and not [name for name in names if name in text]
    assert "epsilon" not in text and "merchant" not in {label for _, labels in samples for label, _ in labels}


def test_they_are_served_while_the_run_lasts(tiny_experiment, tmp_path):
    metrics = RunMetrics()
    with CallbackList([metrics]):
        metrics.on_start(
            tiny_experiment(tmp_path, {"runtime.metrics_port": 0, "runtime.callbacks": ["prometheus"]}), tmp_path
        )
        metrics.on_round(record(1))
        metrics.on_round(record(2, merchants=2, rejected=2, causes={"budget": 1, "fault": 1}))
        url = f"http://127.0.0.1:{metrics.endpoint.port}/metrics"
        with urllib.request.urlopen(url) as answer:
            samples = parsed(answer.read().decode())
    where = {"run": "tiny", "federation": "fedmd", "seed": "0"}
    assert of(samples, "fed_distill_run_active", run="tiny") == 1
    assert of(samples, "fed_distill_uplinks_merged_total", **where) == 6
    for reason in ("budget", "fault"):
        assert of(samples, "fed_distill_uplinks_rejected_total", **where, reason=reason) == 1
    assert of(samples, "fed_distill_round_seconds_bucket", **where, le="2.5") == 2
    assert of(samples, "fed_distill_round_seconds_bucket", **where, le="1.0") == 0
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(url)


def test_a_run_that_ends_early_has_failed(tiny_experiment, tmp_path):
    for name, ends, failed in (("good", True, 0), ("bad", False, 1)):
        (tmp_path / name).mkdir()
        metrics = RunMetrics()
        with CallbackList([metrics]):
            metrics.on_start(tiny_experiment(tmp_path), tmp_path / name)
            if ends:
                metrics.on_end({})
        samples = parsed((tmp_path / name / "metrics.prom").read_text(encoding="utf-8"))
        assert of(samples, "fed_distill_run_failed", run="tiny") == failed
        assert of(samples, "fed_distill_run_active", run="tiny") == 0


def test_progress_before_the_first_round_is_written_once_a_minute(tiny_experiment, tmp_path, monkeypatch):
    now = [1e9]
    monkeypatch.setattr(run_metrics.time, "time", lambda: now[0])
    found = []
    metrics = RunMetrics()
    metrics.on_stage("a teacher", None)  # nothing to write to yet
    metrics.on_start(tiny_experiment(tmp_path), tmp_path)
    for seconds in (0, 59, 61, 62, 130):
        now[0] = 1e9 + seconds
        metrics.on_step(seconds, {})
        samples = parsed((tmp_path / "metrics.prom").read_text(encoding="utf-8"))
        found.append(of(samples, "fed_distill_run_progress_timestamp_seconds", run="tiny") - 1e9)
    assert found == [0, 0, 61, 61, 130]


def test_a_port_that_is_taken_is_named(tiny_experiment, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"127\.0\.0\.1:{port}: .*; name another port"):
            changes = {"runtime.metrics_port": port, "runtime.callbacks": ["prometheus"]}
            RunMetrics().on_start(tiny_experiment(tmp_path, changes), tmp_path)


def test_without_the_library_the_user_is_told_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(ConfigError, match=r"callback 'prometheus' needs .* pip install fed-distill\[metrics\]"):
        CallbackList.from_names(["prometheus"])


def test_a_line_of_a_round_says_why_merchants_are_missing(tiny_experiment, simulate, tmp_path):
    limits = tmp_path / "limits.toml"
    changes = {"controls": [], "privacy": {"unit": "example", "epsilon": 4.0, "batch_size": 16}}
    experiment = tiny_experiment(tmp_path, {**changes, "privacy.limits": str(limits), "adaptation.enabled": False})
    merchant = sorted(load(experiment.data).merchants)[0]
    limits.write_text(f'[merchants."{merchant}"]\nunits = []\n', encoding="utf-8")
    folder, _ = simulate(experiment.with_changes({"name": "again"}))
    assert [line["causes"] for line in read_records(folder)] == [{"budget": 1}] * 2
