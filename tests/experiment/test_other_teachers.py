"""Runs whose teachers are files of labels, causal language models, and ensembles of all kinds."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from fed_distill.data import load
from fed_distill.errors import ConfigError, DataError
from fed_distill.experiment.absolute import absolute
from fed_distill.experiment.preflight import check_settings, check_with_data
from fed_distill.experiment.teaching import prepare_teacher
from fed_distill.models import load_teacher, predict
from fed_distill.reporting.callbacks import Callback, CallbackList
from tests.models.causal_folders import save_causal

FEDMD = {"controls": [], "federation": {"method": "fedmd", "rounds": 1}}
PROMPT = "Query: {text}\nProduct: {pair}\nRelevance:"


class Messages(Callback):
    def __init__(self):
        self.texts = []

    def on_message(self, text):
        self.texts.append(text)


@pytest.fixture(scope="module")
def data(tiny_experiment, tmp_path_factory):
    return load(tiny_experiment(tmp_path_factory.mktemp("data"), FEDMD).data)


def written(path, data, examples, rows):
    """A file with random probabilities for the ``rows`` of ``examples``; returns them."""
    drawn = np.random.default_rng(len(rows)).dirichlet(np.ones(len(data.task.classes)), size=len(examples))
    columns = {"text": examples.texts, "pair": examples.pairs, **dict(zip(data.task.classes, drawn.T, strict=True))}
    pd.DataFrame(columns).iloc[rows].drop_duplicates(["text", "pair"]).to_csv(path, index=False)
    return torch.from_numpy(drawn).float()


@pytest.fixture
def part(data, tmp_path):
    """A file of three quarters of the proxy set, in another order: its path, rows and probabilities."""
    rows = np.random.default_rng(0).permutation(len(data.proxy))[: 3 * len(data.proxy) // 4]
    path = tmp_path / "labels.csv"
    probabilities = written(path, data, data.proxy, rows)
    return SimpleNamespace(path=str(path), rows=np.sort(rows), probabilities=probabilities)


@pytest.fixture(scope="module")
def causal(tmp_path_factory):
    return {"model": save_causal(tmp_path_factory.mktemp("causal"), "gpt2"), "options": {"prompt": PROMPT}}


def of_file(part, **options):
    return {"teacher": {"model": "labels-file", "options": {"path": part.path, **options}}}


def taught(experiment, messages=None):
    return prepare_teacher(experiment, load(experiment.data), CallbackList([messages] if messages else []))


def test_the_proxy_set_is_restricted_to_what_the_file_covers(tiny_experiment, data, part, tmp_path):
    messages = Messages()
    teaching = taught(tiny_experiment(tmp_path, {**FEDMD, **of_file(part)}), messages)
    assert np.flatnonzero(teaching.chosen).tolist() == part.rows.tolist()
    assert teaching.data.proxy.texts == data.proxy.take(part.rows).texts
    torch.testing.assert_close(teaching.labels, part.probabilities[part.rows], rtol=0, atol=1e-5)
    assert teaching.metrics == {"parameters": 0}  # the test set is not covered: no score is invented
    size = len(data.proxy)
    assert (
        f"the teachers have labels for {len(part.rows)} of {size} proxy examples; the others are left out"
        in messages.texts
    )
    assert any("0 of" in text and "of the test set and no score on it" in text for text in messages.texts)


def test_of_candidates_only_those_with_a_label_are_chosen(tiny_experiment, data, tmp_path):
    experiment = tiny_experiment(tmp_path, {**FEDMD, "data.proxy_choice": "uncertainty", "data.proxy_size": 10})
    candidates = load(experiment.data).proxy
    rows = np.arange(5, len(candidates))
    probabilities = written(tmp_path / "some.csv", data, candidates, rows)
    options = {"path": str(tmp_path / "some.csv")}
    teaching = taught(experiment.with_changes({"teacher": {"model": "labels-file", "options": options}}))
    entropy = -(probabilities * probabilities.clamp_min(1e-12).log()).sum(dim=1)
    expected = rows[np.argsort(-entropy[rows].numpy(), kind="stable")[:10]]
    assert np.flatnonzero(teaching.chosen).tolist() == sorted(expected.tolist())


def test_a_run_with_a_file_ends_in_a_report_without_a_teachers_score(tiny_experiment, simulate, part, tmp_path):
    """The result does not depend on who hosts whom: all sites train on the covered examples."""
    rounds = []
    for sites in (1, 3):
        experiment = tiny_experiment(tmp_path / str(sites), {**FEDMD, **of_file(part)})
        folder, _ = simulate(experiment, sites=sites)
        rounds.append(json.loads((folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1]))
    assert rounds[0]["rejected"] == rounds[1]["rejected"] == 0
    assert rounds[0]["valid"] == pytest.approx(rounds[1]["valid"], rel=1e-5)
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert summary["teacher"]["ndcg@10"] is None and summary["retention"] is None and summary["speed"] is None
    assert summary["data"]["examples"]["proxy"] == len(part.rows)
    assert (folder / "report.html").stat().st_size > 0


def test_a_whole_file_has_a_score(tiny_experiment, data, tmp_path):
    everything = [data.proxy, data.test, data.ranking_test.examples]
    texts = [text for part in everything for text in part.texts]
    pairs = [pair for part in everything for pair in part.pairs]
    named = np.array(data.task.classes)[np.r_[np.zeros(len(data.proxy), int), data.test.labels]]
    named = [*named, *np.array(data.task.classes)[data.ranking_test.examples.labels]]
    table = pd.DataFrame({"text": texts, "pair": pairs, "grade": named})
    table.drop_duplicates(["text", "pair"], keep="last").to_parquet(tmp_path / "labels.parquet")
    options = {"path": str(tmp_path / "labels.parquet"), "columns": {"label": "grade"}, "confidence": 0.9}
    experiment = tiny_experiment(tmp_path, {**FEDMD, "teacher": {"model": "labels-file", "options": options}})
    teaching = taught(experiment)
    assert teaching.metrics["accuracy"] == pytest.approx(1.0)
    assert teaching.metrics["ndcg@10"] == pytest.approx(1.0)
    assert teaching.chosen is None


def test_a_zero_shot_language_model_labels_the_proxy_set(tiny_experiment, data, causal, tmp_path):
    experiment = tiny_experiment(tmp_path, {**FEDMD, "teacher": causal, "runtime.cache": str(tmp_path / "cache")})
    teaching = taught(experiment)
    model = load_teacher(experiment.teacher, data.task)
    expected = predict(model, model.encode(data.proxy.texts, data.proxy.pairs))
    torch.testing.assert_close(teaching.labels, expected, rtol=0, atol=1e-6)
    assert teaching.metrics["ndcg@10"] is not None
    assert not (tmp_path / "cache" / "teachers").exists()  # it is read from its own folder
    assert len(list((tmp_path / "cache" / "soft_labels").iterdir())) == 3


def test_a_language_model_is_fine_tuned_and_stored_like_any_teacher(tiny_experiment, causal, tmp_path):
    tuned = {**causal, "steps": 4, "checks": 2, "batch_size": 8, "learning_rate": 1e-4}
    experiment = tiny_experiment(tmp_path, {**FEDMD, "teacher": tuned, "runtime.cache": str(tmp_path / "cache")})
    messages = Messages()
    first = taught(experiment)
    again = taught(experiment, messages)
    assert any("loaded from" in text for text in messages.texts)
    assert torch.equal(first.labels, again.labels)
    untouched = taught(experiment.with_changes({"teacher": causal}))
    assert not torch.allclose(first.labels, untouched.labels, atol=1e-4)


def test_a_method_trains_a_language_model_further(tiny_experiment, simulate, causal, tmp_path):
    changes = {"controls": [], "federation": {"method": "fedmkt", "rounds": 1}, "teacher": causal}
    folder, _ = simulate(tiny_experiment(tmp_path, changes))
    line = json.loads((folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    assert line["valid_teacher"]["ndcg@10"] is not None


@pytest.mark.parametrize("combine", ["mean", "confidence"])
def test_a_file_a_language_model_and_a_fine_tuned_teacher_are_one_ensemble(
    tiny_experiment, data, part, causal, tmp_path, combine
):
    """Where the file has no label, the other two have all the weight."""
    base = tiny_experiment(tmp_path, FEDMD)
    file = of_file(part)["teacher"]
    members = [{**causal, "epochs": 0}, {**file, "epochs": 0}]
    both = base.with_changes({"teacher.ensemble": members, "teacher.combine": combine})
    check_with_data(both, data)
    teaching = taught(both)
    assert teaching.chosen is None and teaching.metrics["ndcg@10"] is not None
    zero_shot = {f"teacher.{key}": value for key, value in {**causal, "epochs": 0}.items()}
    alone = [taught(base).labels, taught(base.with_changes(zero_shot)).labels, part.probabilities]
    for row in range(len(data.proxy)):
        own = [labels[row].double().numpy() for labels in (alone if row in part.rows else alone[:2])]
        least = 0.01 * np.log(len(data.task.classes))
        entropies = [max(-(one * np.log(np.maximum(one, 1e-38))).sum(), least) for one in own]
        expected = np.average(own, axis=0, weights=None if combine == "mean" else 1 / np.array(entropies))
        np.testing.assert_allclose(teaching.labels[row].numpy(), expected, rtol=1e-4, atol=1e-5)


def test_too_few_labels_are_told_before_anything_is_spent(tiny_experiment, data, part, tmp_path):
    experiment = tiny_experiment(tmp_path, {**FEDMD, **of_file(part, min_coverage=0.8)})
    count = f"{len(part.rows)} of {len(data.proxy)} proxy examples, 75.0%, and min_coverage is 80.0%"
    with pytest.raises(DataError, match=f"{part.path} has labels for {count}: label more of them, or lower"):
        check_with_data(experiment, data)
    check_with_data(tiny_experiment(tmp_path, {**FEDMD, **of_file(part, min_coverage=0.75)}), data)
    written(tmp_path / "other.csv", data, data.test, [0, 1])
    with pytest.raises(DataError, match=r"has labels for 0 of .*0.0%, and min_coverage is 0.0%"):
        none = {"path": str(tmp_path / "other.csv"), "min_coverage": 0.0}
        check_with_data(experiment.with_changes({"teacher.options": none}), data)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"distill.transfer": ["hidden"], "student.model": "lstm", "student.options": {}}, "requires hidden states"),
        ({"distill.hard_weight": 0.5}, r"hard_weight = 0.5 requires the teachers' labels of all .* have none"),
        ({"student.model": "bert-mini", "student.options": {"from_teacher": True}}, "it is a LabelsFile"),
        ({"teacher.epochs": 2}, "labels-file cannot be fine-tuned"),
        ({"teacher.domains": 2}, "labels-file is not fine-tuned: set teacher.domains = 1"),
        ({"teacher.masked": {"epochs": 1.0}}, "has no token-level inputs"),
    ],
)
def test_what_a_file_cannot_do_is_refused_with_the_data(tiny_experiment, data, part, tmp_path, changes, message):
    experiment = tiny_experiment(tmp_path, {**FEDMD, **of_file(part)}).with_changes(changes)
    with pytest.raises(ConfigError, match=message):
        check_with_data(experiment, data)


def test_a_method_that_trains_the_teacher_refuses_a_file(tiny_experiment, part, tmp_path):
    experiment = tiny_experiment(tmp_path, {**FEDMD, "federation": {"method": "fedmkt"}, **of_file(part)})
    with pytest.raises(ConfigError, match="fedmkt trains the teacher, and teacher labels-file cannot be trained"):
        check_settings(experiment)


def test_the_path_is_made_absolute(tiny_experiment, part, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = {"model": "labels-file", "options": {"path": "labels.csv"}}
    experiment = tiny_experiment(tmp_path, {**FEDMD, "teacher": {**file, "ensemble": [{**file, "seed": 1}]}})
    moved = absolute(experiment).teacher
    assert moved.options["path"] == moved.ensemble[0].options["path"] == part.path
