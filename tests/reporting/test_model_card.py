"""The model card of a student: the figures of the summary, and nothing personal."""

import re
import tomllib

import pytest
from huggingface_hub import ModelCard

from fed_distill.config import Experiment
from fed_distill.models import build_student
from fed_distill.reporting.model_card import model_card


@pytest.fixture
def card(sample):
    """A function (summary, student, changes of the experiment) -> its card."""

    def make(summary, name="two-tower", options=None, changes=None):
        student = build_student(name, options or {"rows": 64, "width": 4, "head_width": 4}, sample.task)
        return model_card(summary, sample.experiment.with_changes(changes or {}), sample.task, student, 512)

    return make


def section(text, title):
    return re.search(rf"^#+ {title}\n(.*?)(?=^#+ |\Z)", text, re.DOTALL | re.MULTILINE)[1]


def test_its_metadata_are_those_of_the_hub_with_the_figures_of_the_summary(card, summary):
    data = ModelCard(card(summary)).data
    assert (data.library_name, data.pipeline_tag, data.model_name) == ("fed-distill", "text-ranking", "pricerunner")
    assert {"federated-learning", "relevance"} <= set(data.tags)
    assert "differential-privacy" not in data.tags
    found = {one.metric_name: one.metric_value for one in data.eval_results}
    names = {"ndcg@10": "nDCG@10", "mrr@10": "MRR@10", "auc": "AUC", "macro_f1": "macro-F1", "accuracy": "accuracy"}
    assert found == {shown: summary["student"][name] for name, shown in names.items()}


def test_a_tiny_run_gives_the_hub_no_figures_and_says_what_it_is(card, summary):
    tiny = card({**summary, "name": f"{summary['name']}-tiny"})
    assert not ModelCard(tiny).data.eval_results
    assert "It is of a tiny run, which only tries a file: its numbers mean nothing." in section(tiny, "Limits")
    assert "tiny run" not in card(summary)


def test_the_student_stands_beside_its_controls_with_intervals(card, summary):
    text = section(card(summary), "Evaluation")
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("|")}
    assert {"teacher", "server alone", "all data pooled", "**fedavg-kd+fedsubavg**", "**fedmd**"} <= set(rows)
    value, half = summary["student"]["ndcg@10"], summary["intervals"]["student"]["ndcg@10"]
    assert f"{value:.4f} ± {half:.4f}" in rows["**fedavg-kd+fedsubavg**"]
    value, half = summary["controls"]["server"]["ndcg@10"], summary["intervals"]["controls"]["server"]["ndcg@10"]
    assert f"{value:.4f} ± {half:.4f}" in rows["server alone"]
    assert "*all data pooled* (control `pooled`)" in text
    assert "over 3 seeds; the weights in this folder are those of seed 0" in text


def test_the_worst_served_are_figures_without_a_name(card, summary):
    text = card(summary)
    worst = section(text, "For whom it does worst")
    student = summary["student"]
    for value in (student["merchant_accuracy"], student["worst_tenth"], student["worst_merchant"]["accuracy"]):
        assert f"{value:.3f}" in worst
    assert not [name for name in summary["by_merchant"]["counts"] if name in text]


def test_without_privacy_nothing_was_spent_and_a_limit_says_so(card, summary):
    text = card(summary)
    assert "Unit: none. Epsilon spent: none." in section(text, "Privacy")
    assert "It has no differential privacy" in section(text, "Limits")


def test_a_private_run_states_unit_and_epsilon(card, private_summary):
    text = card(private_summary)
    privacy = private_summary["privacy"]
    found = re.search(r"Unit: `example`\. Epsilon spent: ([\d.]+) at delta (\S+)\.\n", section(text, "Privacy"))
    assert privacy["epsilon"] <= float(found[1]) < privacy["epsilon"] + 0.001
    assert float(found[2]) == privacy["delta"]
    assert "differential-privacy" in ModelCard(text).data.tags
    assert "no differential privacy" not in section(text, "Limits")
    assert "does not cover these figures" in section(text, "For whom it does worst")


def test_its_settings_repeat_the_experiment_without_folders_of_the_machine(card, summary, sample):
    text = card(summary, changes={"runtime.folder": "/home/anna/runs", "runtime.cache": "/home/anna/cache"})
    assert "anna" not in text
    settings = tomllib.loads(re.search(r"````toml\n(.*?)````", text, re.DOTALL)[1])
    assert Experiment.parse(settings) == sample.experiment


def test_of_other_folders_only_the_last_part_is_told(card, summary):
    text = card(
        summary, changes={"teacher.model": "/home/anna/models/small-bert", "data.options.path": "/home/anna/x.csv"}
    )
    assert "anna" not in text
    assert 'model = "small-bert"' in text and 'path = "x.csv"' in text


@pytest.mark.parametrize(
    ("path", "told"),
    [("~/jane/x.csv", "x.csv"), ("../jane/x.csv", "x.csv"), ("/deals", "/deals"), ("intfloat/e5", "intfloat/e5")],
)
def test_what_is_surely_a_path_with_folders_is_cut(card, summary, path, told):
    assert f'path = "{told}"' in card(summary, changes={"data.options.path": path})


def test_delta_is_rounded_up(card, private_summary):
    private_summary["privacy"] |= {"epsilon": 2.0049, "delta": 1.2349e-6}
    text = card(private_summary)
    assert "2.005 at delta 1.24e-06" in text and "ε = 2.01 at most, δ = 1.24e-06 at most" in " ".join(text.split())


def test_epsilon_is_rounded_up(card, private_summary):
    private_summary["privacy"]["epsilon"] = 3.9601
    assert "Epsilon spent: 3.961 at delta" in card(private_summary)
    private_summary["privacy"]["epsilon"] = None
    assert "Epsilon spent: unbounded at delta" in card(private_summary)


def test_a_teacher_without_weights_is_a_file(card, summary):
    assert "and a teacher of 22,713,988 weights." in card(summary)
    summary["teacher"]["parameters"] = 0
    assert "and a file of labels in place of a teacher." in card(summary)


def test_the_server_s_tables_are_counted(card, private_summary):
    assert "The server has 14,210 labelled examples and a proxy set of 4,000." in card(private_summary)


def test_how_it_is_used_fits_the_student(card, summary, task):
    text = card(summary)
    assert "student.rank(" in text
    assert "student.embed(" in text
    assert "transformers cannot load it: its network is not one of theirs" in text
    small = {"rows": 64, "width": 8, "layers": 1}
    bert = card(summary, "bert-mini", small)
    assert "student.embed(" not in bert
    assert "token ids are hashed word pieces" in bert


def test_the_card_of_a_run_lies_beside_its_student(tiny_run):
    loaded = ModelCard.load(tiny_run.result.student / "README.md")
    found = {one.metric_name: one.metric_value for one in loaded.data.eval_results}
    assert found["nDCG@10"] == tiny_run.result.summary["student"]["ndcg@10"]
    assert not [name for name in tiny_run.result.summary["by_merchant"]["counts"] if name in loaded.text]


def test_a_table_is_called_as_its_file(card, summary):
    text = card({**summary, "dataset": "table", "dataset_name": "avis.csv"})
    assert "Data set: `avis.csv`" in section(text, "Training data")
    assert ModelCard(text).data.eval_results[0].dataset_name == "avis.csv"
