"""Each control has what its name says, and nothing else."""

import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file

from fed_distill.config import Experiment
from fed_distill.data import load
from fed_distill.errors import ConfigError, DataError
from fed_distill.evaluation.lexical import bm25
from fed_distill.evaluation.metrics import ndcg_by_query
from fed_distill.experiment.student_factory import StudentFactory
from fed_distill.reporting.callbacks import Callback
from fed_distill.reporting.store import read_summary
from fed_distill.reporting.tables import comparison_cells

QUICK = {"federation.rounds": 1, "adaptation.enabled": False, "controls": ["student", "server", "fedavg"]}


@pytest.fixture
def trained(tiny_experiment, simulate, tmp_path):
    """A function: the weights of `student`, `server` and `fedavg` of a run with these changes, by name."""

    def weights(name, changes=None):
        folder, _ = simulate(tiny_experiment(tmp_path, {**QUICK, **(changes or {}), "name": name}))
        kept = folder / "checkpoint" / "seed-0"
        model = (changes or {}).get("student.model", "two-tower")
        places = {"student": f"server/{model}%2Flabels", "server": f"server/{model}", "fedavg": "controls/fedavg"}
        found = {row: load_file(kept / place / "final.safetensors") for row, place in places.items()}
        return {row: {name: value.numpy().tobytes() for name, value in one.items()} for row, one in found.items()}

    return weights


def test_another_teacher_changes_the_server_and_neither_student_nor_fedavg(trained):
    one, other = trained("one"), trained("other", {"teacher.learning_rate": 1e-3})
    assert one["server"] != other["server"]
    assert (one["student"], one["fedavg"]) == (other["student"], other["fedavg"])


def test_a_student_cut_from_the_teacher_starts_from_random_weights_in_both(trained):
    """Another teacher's layers and embeddings would give other weights."""
    changes = {"student.model": "bert-mini", "student.options": {"layers": 1, "from_teacher": True}}
    one, other = (trained(name, {**changes, "teacher.epochs": epochs}) for name, epochs in (("one", 1), ("other", 2)))
    assert one["server"] != other["server"]
    assert (one["student"], one["fedavg"]) == (other["student"], other["fedavg"])


def test_nor_does_a_teacher_that_selects_the_proxy_set(trained):
    """Pretraining is on the texts of all candidates."""
    changes = {
        "data.proxy_choice": "uncertainty",
        "student.model": "bert-mini",
        "student.options": {"layers": 1, "width": 16, "heads": 2},
        "student.masked": {"epochs": 1},
    }
    one, other = (trained(name, {**changes, "teacher.epochs": epochs}) for name, epochs in (("one", 1), ("other", 2)))
    assert one["server"] != other["server"]
    assert (one["student"], one["fedavg"]) == (other["student"], other["fedavg"])


def test_the_student_of_labels_only_trains_as_long_as_it_is_told(trained):
    one, longer = trained("one"), trained("longer", {"training.student.epochs": 40.0})
    assert one["student"] != longer["student"]
    assert one["fedavg"] != longer["fedavg"]  # which starts from it
    assert one["server"] == longer["server"]


@pytest.mark.parametrize(
    ("scores", "best"),
    [([0.5, 0.6, 0.7], 9.0), ([0.5, 0.6, 0.6], 3.0), ([0.5, 0.5], 1.0), ([0.5, 0.4], 1.0)],
)
def test_of_several_numbers_of_epochs_the_best_in_validation_trains_as_if_it_were_alone(
    trained, monkeypatch, tmp_path, scores, best
):
    """The first that is no better ends the search."""
    left = list(scores)
    monkeypatch.setattr(StudentFactory, "_validated", lambda made, student, weights: left.pop(0))
    cache = str(tmp_path / "cache")  # which has no student of other scores
    found = trained("found", {"training.student.epochs": [1.0, 3.0, 9.0], "runtime.cache": cache})
    assert not left
    assert found == trained("alone", {"training.student.epochs": best})


@pytest.mark.parametrize(("privacy", "start", "part"), [("none", "labels", "valid"), ("example", "labels", "public")])
def test_a_private_federation_depends_on_no_merchants_validation_examples(privacy, start, part, tiny_experiment):
    scores = SimpleNamespace(public_score=lambda student: "public", validation_score=lambda student: "valid")
    changes = {"privacy": {"unit": privacy} if privacy == "none" else {"unit": privacy, "epsilon": 1.0}}
    experiment = tiny_experiment(Path("runs"), {**changes, "federation.start": start, "controls": []})
    made = StudentFactory(experiment, 0, None, None, Callback(), scores)
    assert made._validated(SimpleNamespace(load_state_dict=dict), {}) == part


def test_numbers_of_epochs_increase():
    for tried, told in (
        ([10, 5], "epochs must increase: 10, 5"),
        ([], "at least 1 item"),
        ([0.0], "greater than 0"),
    ):
        with pytest.raises(ConfigError, match=told):
            Experiment.parse({"training": {"student": {"epochs": tried}}})


@pytest.mark.parametrize(("given", "written"), [(10, 10.0), ([10], 10.0), ([10, 30], [10.0, 30.0])])
def test_one_number_of_epochs_is_written_as_a_number_as_in_earlier_releases(given, written):
    """So that studies of theirs find their cells."""
    experiment = Experiment.parse({"training": {"student": {"epochs": given}}})
    found = tomllib.loads(experiment.to_toml())
    assert found["training"]["student"]["epochs"] == written
    assert Experiment.parse(found) == experiment


def test_true_labels_of_the_proxy_set_are_required_before_anything_is_trained(tiny_experiment, simulate, tmp_path):
    changes = {**QUICK, "controls": ["oracle-proxy"], "data.task": "recommend", "data.proxy_from": "catalogue"}
    with pytest.raises(DataError, match="'oracle-proxy' requires the true labels of the proxy set"):
        simulate(tiny_experiment(tmp_path, changes))
    assert not any(tmp_path.iterdir())


def test_bm25_has_the_titles_of_the_server_and_needs_no_student(tiny_experiment, simulate, tmp_path):
    changes = {**QUICK, "controls": ["bm25", "server"], "data.cold_merchants": 0.3}
    experiment = tiny_experiment(tmp_path, changes)
    folder, _ = simulate(experiment)
    data = load(experiment.data)
    row = read_summary(folder)["controls"]["bm25"]
    for ranked, measured in ((data.ranking_test, row), (data.cold.ranking, row["cold"])):
        found = bm25([*data.public.pairs, *data.proxy.pairs])(ranked.examples)
        by_query = ndcg_by_query(found, ranked, data.task)
        assert measured["ndcg@10"] == pytest.approx(sum(by_query) / len(by_query))
    assert (row["accuracy"], row["macro_f1"]) == (None, None)
    report, summary = (folder / "report.html").read_text(encoding="utf-8"), read_summary(folder)
    assert "BM25, no training" in report
    header, *rows = comparison_cells(summary)
    sums = {row[0]: row[header.index("with BM25")] for row in rows}
    found = summary["controls"]["server"]["with_bm25"]
    written = f"{found['ndcg@10']:.4f} ± {found['half_width']:.4f}"
    assert sums["server alone"] == written and f"<small>with BM25 {written}</small>" in report
    main = summary["federations"][summary["federation"]]["with_bm25"]
    assert main["above_server"]["value"] == pytest.approx(main["ndcg@10"] - found["ndcg@10"])
    assert main["above_server"]["p_adjusted"] == main["above_server"]["p_value"] and found["above_server"] is None
    assert sums["teacher"] == sums["BM25, no training"] == "–"


def test_bm25_is_refused_where_there_are_no_queries(tiny_experiment, simulate, tmp_path):
    with pytest.raises(ConfigError, match="control 'bm25' ranks titles for queries, which task 'sentiment' does not"):
        simulate(tiny_experiment(tmp_path, {**QUICK, "controls": ["bm25"], "data.task": "sentiment"}))


def test_fedavg_is_the_only_arm_that_starts_without_a_teacher():
    arms = Experiment().arms()
    assert {name for name, arm in arms.items() if arm.start == "labels"} == {"fedavg"}
