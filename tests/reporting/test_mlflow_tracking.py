"""The callback ``mlflow``, against a real MLflow store: what it logs is read back with MLflow's client."""

import json
import sys
import tomllib
from pathlib import Path

import pytest
from mlflow import MlflowClient
from sqlalchemy import Engine, event

from fed_distill.config import Experiment
from fed_distill.errors import CheckpointError, ConfigError
from fed_distill.reporting.callbacks import CallbackList
from fed_distill.reporting.mlflow_tracking import FILE, MLflowTracking, parameters


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk():
    """SQLite need not survive a power cut here: an empty store has some hundred statements."""

    def unsynchronized(connection, _):
        if type(connection).__module__ == "sqlite3":
            connection.execute("PRAGMA synchronous=OFF")
            connection.execute("PRAGMA journal_mode=MEMORY")

    event.listen(Engine, "connect", unsynchronized)
    yield
    event.remove(Engine, "connect", unsynchronized)


@pytest.fixture
def client(tmp_path, monkeypatch):
    """A client of an empty store, which MLFLOW_TRACKING_URI names; artifacts go to the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'store.db'}")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    return MlflowClient()


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "runs" / "trial"
    made.mkdir(parents=True)
    (made / "experiment.toml").write_text('name = "trial"\n')
    return made


def only_run(client, name="fed-distill"):
    (run,) = client.search_runs([client.get_experiment_by_name(name).experiment_id])
    return run


def history(client, run, key):
    return [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, key)]


def record(number, auc):
    return {"seed": 0, "federation": "fedmd", "round": number, "rounds": 3, "valid": {"auc": auc}, "seconds": 1.5}


def test_a_run_is_in_mlflow_as_it_is_in_its_folder(client, tiny_experiment, simulate, tmp_path):
    experiment = tiny_experiment(
        tmp_path / "runs", {"controls": ["student", "server"], "runtime.callbacks": ["mlflow"]}
    )
    with CallbackList.of(experiment) as callbacks:
        folder, _ = simulate(experiment, callbacks=callbacks.callbacks)
    run = only_run(client)
    assert (run.info.run_name, run.info.status) == ("tiny", "FINISHED")
    assert run.data.tags["fed_distill.dataset"] == "marketplace"
    assert run.data.tags["fed_distill.privacy_unit"] == "none"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert history(client, run, "fedavg-kd/seed-0/valid/ndcg_at_10") == [
        (line["round"], line["valid"]["ndcg@10"]) for line in lines
    ]
    assert len(lines) == 2
    summary = json.loads((folder / "summary.json").read_text())
    for row in ("student", "server"):
        assert run.data.metrics[f"{row}/final/ndcg_at_10"] == summary["controls"][row]["ndcg@10"]
    assert run.data.metrics["fedavg-kd/final/auc"] == summary["federations"]["fedavg-kd"]["auc"]
    assert run.data.metrics["teacher/final/auc"] == summary["teacher"]["auc"]
    assert [one.path for one in client.list_artifacts(run.info.run_id)] == ["experiment.toml"]
    stored = Path(client.download_artifacts(run.info.run_id, "experiment.toml", str(tmp_path)))
    assert tomllib.loads(stored.read_text())["federation"]["rounds"] == 2


def test_parameters_are_the_whole_configuration(client, folder):
    experiment = Experiment.parse({"name": "trial", "data": {"options": {"merchants": 8, "languages": ["de", "zh"]}}})
    with CallbackList.from_names(["mlflow"]) as callbacks:
        callbacks.on_start(experiment, folder)
    found = only_run(client).data.params
    assert found == parameters(experiment)
    assert len(found) > 100, "more than MLflow takes in one request"
    assert found["training.merchants.batch_size"] == "32"
    assert found["federation.method"] == "fedavg-kd"
    assert json.loads(found["data.options"]) == {"merchants": 8, "languages": ["de", "zh"]}


def test_nothing_of_a_single_merchant_is_logged(client, tiny_experiment, simulate, tmp_path):
    experiment = tiny_experiment(tmp_path / "runs", {"controls": ["server", "local"], "runtime.callbacks": ["mlflow"]})
    with CallbackList.of(experiment) as callbacks:
        folder, _ = simulate(experiment, callbacks=callbacks.callbacks)
    merchants = json.loads((folder / "summary.json").read_text())["by_merchant"]
    run = only_run(client)
    logged = json.dumps([run.data.metrics, run.data.params, run.data.tags])
    assert merchants
    assert "merchant-" in json.dumps(merchants)
    assert "merchant-" not in logged
    assert "worst" not in logged


def test_a_resumed_run_continues_and_repeats_no_round(client, folder):
    experiment = Experiment.parse({"name": "trial", "federation": {"method": "fedmd"}})
    for rounds in ((1, 2), (2, 3)):  # killed after the second round, before its checkpoint
        callback = MLflowTracking()
        callback.on_start(experiment, folder)
        assert only_run(client).info.status == "RUNNING"
        for number in rounds:
            callback.on_round(record(number, number / 4))
        callback.close()
        assert only_run(client).info.status == "FAILED", "it did not end"
    assert history(client, only_run(client), "fedmd/seed-0/valid/auc") == [(1, 0.25), (2, 0.5), (3, 0.75)]


def test_another_store_does_not_continue_a_run_that_it_does_not_have(client, folder, tmp_path, monkeypatch):
    MLflowTracking().on_start(Experiment(name="trial"), folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'other.db'}")
    with pytest.raises(CheckpointError, match=r"other\.db has no run .*store\.db: set MLFLOW_TRACKING_URI"):
        MLflowTracking().on_start(Experiment(name="trial"), folder)
    (folder / FILE).unlink()
    with CallbackList([MLflowTracking()]) as callbacks:
        callbacks.on_start(Experiment(name="trial"), folder)
    assert only_run(MlflowClient()).info.run_name == "trial"


def test_the_mlflow_experiment_is_named_by_its_variable(client, folder, monkeypatch):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "search")
    with CallbackList([MLflowTracking()]) as callbacks:
        callbacks.on_start(Experiment(name="trial"), folder)
    assert only_run(client, "search").info.run_name == "trial"


def test_titles_that_would_share_their_metrics_are_refused(client, folder):
    experiment = Experiment.parse(
        {"federation": {"method": "fedmd", "label": "a+b"}, "compare": [{"method": "fedmd", "label": "a,b"}]}
    )
    with pytest.raises(ConfigError, match="two federations are called 'a_b' in MLflow"):
        MLflowTracking().on_start(experiment, folder)


def test_a_store_that_cannot_be_reached_is_named(folder, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # the port "discard", where nobody listens
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ConfigError, match=r"cannot log to http://127\.0\.0\.1:9: .*correct MLFLOW_TRACKING_URI"):
        MLflowTracking().on_start(Experiment(name="trial"), folder)


SECRET = "http://anna:pa55word@127.0.0.1:9/?token=s3cret"


def test_passwords_of_the_store_are_not_shown(folder, monkeypatch):
    """Its address may have a user's password, as that of a database does."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", SECRET)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ConfigError, match=r"cannot log to http://127\.0\.0\.1:9/\?\*\*\*: ") as found:
        MLflowTracking().on_start(Experiment(name="trial"), folder)
    assert not [secret for secret in ("anna", "pa55word", "s3cret") if secret in str(found.value)]


def test_passwords_of_the_store_are_not_kept(client, folder, tmp_path, monkeypatch):
    """A run's folder is given to others; it says where the MLflow run is, without the password."""
    store = f"sqlite:///{tmp_path / 'store.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{store}?timeout=5")
    MLflowTracking().on_start(Experiment(name="trial"), folder)
    assert json.loads((folder / FILE).read_text())["tracking_uri"] == f"{store}?***"
    MLflowTracking().on_start(Experiment(name="trial"), folder)
    assert only_run(client).info.run_name == "trial"


@pytest.mark.parametrize("label", [".", "..", "x" * 200])
def test_a_label_that_mlflow_does_not_allow_is_refused_before_training(client, folder, label):
    experiment = Experiment.parse({"federation": {"method": "fedmd", "label": label}})
    with pytest.raises(ConfigError, match="MLflow allows no metrics of a federation that is called"):
        MLflowTracking().on_start(experiment, folder)


def test_without_mlflow_the_user_is_told_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ConfigError, match=r"pip install fed-distill\[mlflow\]"):
        CallbackList.from_names(["mlflow"])
