"""One whole run: complete, measured on the wire, and the same however the merchants are spread over sites."""

import json
from urllib.parse import quote

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as Proto
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score, f1_score, ndcg_score, roc_auc_score

from fed_distill.coordinator import federation
from fed_distill.data import load
from fed_distill.errors import CheckpointError, ConfigError, DataError
from fed_distill.models import load_model
from fed_distill.transport.requests import TRAIN

SCORES = ("accuracy", "macro_f1", "auc", "ndcg@10")


@pytest.fixture(scope="module")
def summary(tiny_run):
    return json.loads((tiny_run.result.folder / "summary.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def recomputed(tiny_run):
    """A function (file of weights, prefix of their names) -> what scikit-learn says of the student with them: its
    scores on the common test set, and its accuracy on each merchant's own."""
    data = load(tiny_run.experiment.data)
    student = load_model(tiny_run.result.folder / "student").eval()

    def predicted(examples):
        with torch.no_grad():
            return student(student.encode(examples.texts, examples.pairs)).logits.softmax(dim=-1).numpy()

    def right(examples):
        return accuracy_score(examples.labels, predicted(examples).argmax(axis=1))

    def of(place, prefix=""):
        stored = load_file(tiny_run.result.folder / place)
        student.load_state_dict({k.removeprefix(prefix): v for k, v in stored.items() if k.startswith(prefix)})
        says, labels = predicted(data.test), data.test.labels
        return {
            "accuracy": right(data.test),
            "macro_f1": f1_score(labels, says.argmax(axis=1), average="macro"),
            "auc": roc_auc_score(labels == data.task.positive_index, says[:, data.task.positive_index]),
            "ndcg@10": np.mean(list(ndcg_of_queries(predicted(data.ranking_test.examples), data))),
            "by_merchant": {name: right(merchant.test) for name, merchant in data.merchants.items()},
        }

    return of


def ndcg_of_queries(says, data):
    grades, expected = np.array(data.task.gains)[data.ranking_test.examples.labels], says @ np.array(data.task.gains)
    for query in np.unique(data.ranking_test.queries):
        rows = data.ranking_test.queries == query
        if grades[rows].any():
            yield ndcg_score(grades[None, rows], expected[None, rows], k=10)


def assert_scores(told, expected):
    assert {name: told[name] for name in SCORES} == pytest.approx({name: expected[name] for name in SCORES}, abs=1e-6)


def test_the_summary_has_every_key_of_schema_1(summary):
    assert summary["schema"] == 1
    for key, kind in {
        "dataset": str, "task": str, "method": str, "merchants": int, "rounds": int, "seed": int, "seconds": float,
    }.items():  # fmt: skip
        assert type(summary[key]) is kind, key
    for model in ("teacher", "student"):
        assert type(summary[model]["parameters"]) is int
        assert {type(summary[model][score]) for score in SCORES} == {float}
    assert {"gap_closed", "retention"} <= summary.keys()
    assert set(summary["privacy"]) == {"unit", "epsilon", "delta", "audit"}
    assert summary["merchants"] == 5


@pytest.mark.parametrize(
    ("place", "part", "name"),
    [
        ("student/model.safetensors", None, "student"),
        ("checkpoint/seed-0/federations/fedavg-kd%2Bfedsubavg/final.safetensors", "federations", "fedavg-kd+fedsubavg"),
        ("checkpoint/seed-0/federations/fedmd/final.safetensors", "federations", "fedmd"),
        ("checkpoint/seed-0/controls/fedavg/final.safetensors", "controls", "fedavg"),
        ("checkpoint/seed-0/server/two-tower/final.safetensors", "controls", "server"),
    ],
)
def test_scores_are_those_of_the_stored_students(summary, recomputed, place, part, name):
    told, expected = summary[part][name] if part else summary[name], recomputed(place)
    assert_scores(told, expected)
    by_merchant = expected["by_merchant"]
    assert told["merchant_accuracy"] == pytest.approx(np.mean(list(by_merchant.values())))
    assert told["worst_merchant"]["accuracy"] == pytest.approx(by_merchant[told["worst_merchant"]["merchant"]])
    counts = summary["by_merchant"]["counts"]
    assert set(counts) == set(by_merchant)
    enough = [name for name, count in counts.items() if count >= 20]  # of fewer an accuracy says little
    if 2 * len(enough) < len(counts):
        enough = list(counts)
    assert told["worst_merchant"]["accuracy"] == pytest.approx(min(by_merchant[name] for name in enough))


def test_all_controls_are_compared_and_are_not_one_another(tiny_run, summary):
    assert list(summary["controls"]) == ["student", "server", "local", "pooled", "fedavg"]
    assert list(summary["federations"]) == ["fedavg-kd+fedsubavg", "fedmd"]
    rows = [*summary["controls"].values(), *summary["federations"].values()]
    distinct = {tuple(row[name] for name in SCORES) for row in rows}
    assert len(distinct) >= len(rows) - 1  # a teacher of this size may add nothing to the student of labels only
    examples = len(load(tiny_run.experiment.data).test)
    for row in rows:  # a number of right answers; of five students where each merchant has its own
        right = row["accuracy"] * examples * (5 if row is summary["controls"]["local"] else 1)
        assert right == pytest.approx(round(right), abs=1e-6)


def test_there_is_no_retention_of_a_teacher_that_is_no_better_than_chance(summary):
    """Nor is it said how much of such a teacher's quality is kept; others' is tested in ``tests/evaluation``."""
    assert summary["headline"] == "ndcg@10"
    assert summary["retention"] is None
    assert "no better than chance" in summary["federations"][summary["federation"]]["notes"]["retention"]


def test_the_folder_holds_experiment_rounds_student_and_report(tiny_run):
    folder = tiny_run.result.folder
    rounds = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(line["federation"], line["round"]) for line in rounds] == [
        (arm, number) for arm in ("fedavg", "fedavg-kd+fedsubavg", "fedmd") for number in (1, 2)
    ]
    assert all(line["merchants"] == 5 and line["rejected"] == 0 for line in rounds)
    student = load_model(folder / "student")
    assert student.parameter_count() == tiny_run.result.summary["student"]["parameters"]
    assert "<html" in tiny_run.result.report.read_text(encoding="utf-8")
    assert "precision" in (folder / "classification_report.txt").read_text(encoding="utf-8")
    assert not list(folder.rglob("*.pkl")) + list(folder.rglob("*.pt"))


@pytest.mark.parametrize("title", ["fedavg-kd+fedsubavg", "fedmd"])
def test_adaptation_is_reported_before_and_after_and_for_each_merchant(tiny_run, summary, recomputed, title):
    row, file = summary["federations"][title], quote(title)
    adaptation = row["adaptation"]
    assert_scores(
        adaptation["before"], recomputed(f"checkpoint/seed-0/federations/{file}/rounds.safetensors", "weights/")
    )
    assert_scores(adaptation["after"], row)
    assert [note.partition(":")[0] for note in adaptation["notes"]["0"]] == [
        "fine-tune on the domain",
        "distil on the domain",
        "fine-tune again",
    ]
    assert adaptation["personal"]["before"]["mean"] == row["merchant_accuracy"]
    kept = f"checkpoint/sites/seed-0/{file}%2Fpersonal"
    own = {
        name: recomputed(f"{kept}/{name}/000001.safetensors")["by_merchant"][name]
        for name in summary["by_merchant"]["counts"]
    }
    assert adaptation["personal"]["after"]["mean"] == pytest.approx(np.mean(list(own.values())))


def parts(wire, arm, number):
    """Downlink records, start records and each merchant's uplink records of one round, from the serialized messages."""
    for kind, request, reply in wire:
        content = recorddict_from_proto(Proto.FromString(request))
        if kind == TRAIN and content["request"]["arm"] == arm and content["down"]["round"] == number:
            answer = recorddict_from_proto(Proto.FromString(reply))
            places = sorted({name.partition("/")[0] for name in answer if "/" in name}, key=int)
            uplinks = [
                {k.partition("/")[2]: v for k, v in answer.items() if k.startswith(f"{place}/")} for place in places
            ]
            down = {name: record for name, record in content.items() if name.startswith("down")}
            asked = dict(content["request"])  # what a merchant would be asked on its own
            down["request"] = ConfigRecord(
                {**asked, **{name: asked[name][:1] for name in ("merchants", "students", "rounds")}}
            )
            starts = {name: record for name, record in content.items() if name.startswith("start.")}
            return down, starts, uplinks, len(reply)
    raise AssertionError(f"no message of {arm}, round {number}")


def size(records):
    return len(recorddict_to_proto(RecordDict(records)).SerializeToString())


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("arm", ["fedavg", "fedavg-kd+fedsubavg", "fedmd"])
def test_reported_bytes_are_those_of_the_serialized_messages(tiny_run, arm, number):
    down, starts, uplinks, reply = parts(tiny_run.wire, arm, number)
    lines = [json.loads(line) for line in (tiny_run.result.folder / "metrics.jsonl").read_text().splitlines()]
    (line,) = [line for line in lines if (line["federation"], line["round"]) == (arm, number)]
    sizes = [size(uplink) for uplink in uplinks]
    assert len(uplinks) == 5
    assert line["bytes"]["uplink"] == np.mean(sizes)
    assert line["bytes"]["downlink"] == size(down) + (size(starts) if starts else 0)
    assert bool(starts) == (arm == "fedmd" and number == 1)
    assert sum(sizes) < reply < 1.02 * sum(sizes)


def test_the_summarys_bytes_are_the_mean_over_the_rounds(tiny_run, summary):
    arm = "fedavg-kd+fedsubavg"
    rounds = [parts(tiny_run.wire, arm, number) for number in (1, 2)]
    assert summary["bytes"] == {
        "downlink_per_merchant_round": round(np.mean([size(down) for down, *_ in rounds])),
        "uplink_per_merchant_round": round(np.mean([np.mean([size(one) for one in ups]) for _, _, ups, _ in rounds])),
    }


def test_a_submodel_is_fewer_bytes_than_the_whole_student(tiny_run):
    down, _, uplinks, _ = parts(tiny_run.wire, "fedavg", 1)
    assert max(size(uplink) for uplink in uplinks) < size(down)


PERSONAL = {"adaptation.personal": True, "compare": [{"method": "fedmd"}]}
QUICK = {"controls": ["server", "fedavg"], "federation.aggregator": "fedadam"}


@pytest.mark.parametrize("federation", [QUICK, {"federation.method": "fedmd", "federation.options": {}}])
def test_one_site_and_three_sites_give_the_same_student(tiny_experiment, simulate, outcome_of, tmp_path, federation):
    changes = {"controls": ["server"], "runtime.trainer": "sequential", **federation}
    one, grid = simulate(tiny_experiment(tmp_path / "one", changes), sites=1)
    three, spread = simulate(tiny_experiment(tmp_path / "three", changes), sites=3)
    assert len(spread.wire) > len(grid.wire)
    weights, others = (load_file(folder / "student" / "model.safetensors") for folder in (one, three))
    for name, value in weights.items():
        torch.testing.assert_close(others[name], value, rtol=1e-6, atol=1e-6)
    assert outcome_of(one) == outcome_of(three)


def test_both_trainers_give_the_same_student(tiny_experiment, simulate, tmp_path, distance):
    """With SGD: AdamW turns rounding errors of gradients near zero into steps, which grow over rounds."""
    changes = {"controls": ["server"], "training.merchants.optimizer": "sgd", "training.merchants.learning_rate": 0.03}
    students = []
    for trainer in ("cohort", "sequential"):
        folder, _ = simulate(tiny_experiment(tmp_path / trainer, {**changes, "runtime.trainer": trainer}))
        students.append(load_file(folder / "student" / "model.safetensors"))
    assert distance(*students) < 1e-5


@pytest.mark.parametrize("sites", [1, 3])
def test_merging_in_chunks_of_two_gives_the_same_run_bit_for_bit(
    tiny_experiment, simulate, outcome_of, tmp_path, monkeypatch, sites
):
    changes = {"controls": ["local"], "federation.method": "feddf", "federation.options": {}, **PERSONAL}
    changes["runtime.trainer"] = "sequential"
    whole, grid = simulate(tiny_experiment(tmp_path / "whole", changes), sites=sites)
    monkeypatch.setattr(federation, "chunk_size", lambda student_bytes: 2)
    cut, small = simulate(tiny_experiment(tmp_path / "cut", changes), sites=sites)
    asked = [[kind for kind, _, _ in found.wire].count(TRAIN) for found in (grid, small)]
    trainings = 1 + 2 * (2 + 1)  # local; of each of the two federations two rounds, and personal adaptation
    assert asked[0] == sites * trainings
    assert asked[1] >= 3 * trainings
    assert outcome_of(whole) == outcome_of(cut)


def test_another_seed_is_another_student_on_the_same_test_set(tiny_experiment, simulate, outcome_of, tmp_path):
    changes = {"controls": [], "adaptation.enabled": False, "federation.rounds": 1}
    found = [
        outcome_of(simulate(tiny_experiment(tmp_path / str(seed), {**changes, "seed": seed}))[0]) for seed in (0, 1)
    ]
    assert found[0]["student"] != found[1]["student"]
    assert found[0]["summary"]["by_merchant"]["counts"] == found[1]["summary"]["by_merchant"]["counts"]
    assert found[0]["summary"]["teacher"] == found[1]["summary"]["teacher"]


def test_a_finished_run_is_not_written_over(tiny_run, simulate):
    with pytest.raises(ConfigError, match="exists: continue this run with --resume, or start another one with --name"):
        simulate(tiny_run.experiment)


def test_a_changed_experiment_does_not_resume(tiny_run, simulate, outcome_of):
    before = outcome_of(tiny_run.result.folder)
    changed = tiny_run.experiment.with_changes({"runtime.resume": True, "training.merchants.learning_rate": 0.5})
    with pytest.raises(CheckpointError, match=r"training\.merchants\.learning_rate"):
        simulate(changed)
    assert outcome_of(tiny_run.result.folder) == before


def test_resuming_what_was_never_started_is_refused(tiny_experiment, simulate, tmp_path):
    with pytest.raises(CheckpointError, match=r"there is no run in .* to resume"):
        simulate(tiny_experiment(tmp_path, {"runtime.resume": True}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"federation.method": "fedavgg"}, "unknown method 'fedavgg'; did you mean fedavg"),
        ({"federation.aggregator": "mean"}, "unknown aggregator 'mean'"),
        (
            {"federation.options": {"temprature": 1}},
            "method 'fedavg-kd' has no option 'temprature'; it has: .*temperature",
        ),
        ({"student.model": "two-towers"}, "unknown student 'two-towers'; did you mean two-tower"),
        ({"student.options": {"widht": 3}}, "student 'two-tower' has no option 'widht'"),
        ({"teacher.options": {"layer": 3}}, "teacher 'bert-small' has no option 'layer'"),
        ({"data.dataset": "marktplace"}, "unknown dataset 'marktplace'; did you mean marketplace"),
        ({"student.by_merchant": ["lstm"]}, "student.by_merchant needs a method .* such as fedmd; fedavg-kd shares"),
        ({"compare": [{"method": "fedmmd"}]}, "unknown method 'fedmmd'"),
    ],
)
def test_a_wrong_name_is_said_before_anything_is_written(tiny_experiment, simulate, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        simulate(tiny_experiment(tmp_path / "runs", changes))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.valid_share": 0.0}, "validation set is empty: increase data.valid_share"),
        ({"data.test_share": 0.0}, "the common test set is empty: increase data.test_share"),
    ],
)
def test_an_empty_part_is_said_before_anything_is_written(tiny_experiment, simulate, tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        simulate(tiny_experiment(tmp_path / "runs", changes))
    assert not (tmp_path / "runs").exists()


def test_training_on_withheld_rows_needs_some(tiny_experiment, simulate, tmp_path):
    changes = {"training.unlabeled.epochs": 1.0, "federation.rounds": 1, "controls": []}
    with pytest.raises(ConfigError, match=r"no merchant has any: set data\.client_labels below 1"):
        simulate(tiny_experiment(tmp_path / "runs", changes))
    assert not (tmp_path / "runs").exists()


def test_a_table_without_a_ranking_is_refused_before_anything_is_trained(tiny_experiment, simulate, tmp_path):
    grades = ("exact", "substitute", "complement", "irrelevant")
    rows = [f"query {row},product {row},{grades[row // 5 % 4]},{'abcde'[row % 5]}" for row in range(300)]
    (tmp_path / "rows.csv").write_text("\n".join(["text,pair,label,merchant", *rows]), encoding="utf-8")
    options = {"path": str(tmp_path / "rows.csv"), "columns": {"pair": "pair", "merchant": "merchant"}}
    changes = {"data.dataset": "table", "data.options": options, "controls": ["server"], "federation.rounds": 1}
    with pytest.raises(DataError, match=r"no validation query has candidates .* adaptation\.enabled = false"):
        simulate(tiny_experiment(tmp_path / "runs", changes))
    assert not (tmp_path / "runs").exists()
    folder, _ = simulate(tiny_experiment(tmp_path / "runs", {**changes, "adaptation.enabled": False}))
    assert json.loads((folder / "summary.json").read_text(encoding="utf-8"))["student"]["ndcg@10"] is None


def test_a_federation_that_is_its_own_control_leaves_the_rounds_of_others(tiny_experiment, simulate, tmp_path):
    changes = {"controls": ["fedavg"], "compare": [{"method": "fedavg", "start": "labels"}], "federation.rounds": 1}
    folder, _ = simulate(tiny_experiment(tmp_path, changes))
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["federation"] for line in lines] == ["fedavg", "fedavg-kd"]


def test_a_torn_or_missing_result_says_what_to_delete(tiny_experiment, simulate, outcome_of, tmp_path):
    changes = {"controls": ["server"], "federation.rounds": 1}
    folder, _ = simulate(tiny_experiment(tmp_path, changes))
    expected = outcome_of(folder)
    resumed = tiny_experiment(tmp_path, {**changes, "runtime.resume": True})
    kept = folder / "checkpoint" / "seed-0"
    (kept / "controls" / "server" / "outcome.json").write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"server/outcome\.json is not valid JSON: .*; delete it to repeat"):
        simulate(resumed)
    (kept / "controls" / "server" / "outcome.json").unlink()
    (kept / "federations" / "fedavg-kd" / "final.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"is missing: delete outcome\.json beside it"):
        simulate(resumed)
    (kept / "federations" / "fedavg-kd" / "outcome.json").unlink()
    assert outcome_of(simulate(resumed)[0]) == expected
