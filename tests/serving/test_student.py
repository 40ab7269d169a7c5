"""A served student gives what its evaluation gave, for texts that are cleaned like its training data."""

import json
import os
import shutil
import sys

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, ndcg_score, roc_auc_score

from fed_distill import load_student, seeds
from fed_distill.config import Experiment
from fed_distill.coordinator.evaluation import Evaluator
from fed_distill.data import load
from fed_distill.data.campaign_cells import MARKETING_EFFECT
from fed_distill.data.cleaning import clean
from fed_distill.data.student_description import DESCRIPTION, StudentDescription
from fed_distill.data.tasks import NEXT_BASKET, RECOMMEND, SENTIMENT, category_task
from fed_distill.errors import DataError, ModelError
from fed_distill.evaluation.lexical import bm25
from fed_distill.models import build_student, load_model
from fed_distill.models.student_folder import save_student
from fed_distill.reporting.store import RunStore
from fed_distill.serving import student as serving
from fed_distill.serving.student import Student

TITLES = ("red phone pro", "blue shoe", "green kettle maxi", "手机 mini", "kühl ultra pro")
SMALL = {"rows": 512, "width": 8, "head_width": 8}


def served(task, name="two-tower", options=SMALL, teacher=None, longest=60):
    with seeds.scope(0, "served student"):
        return Student(build_student(name, options, task, teacher), StudentDescription(task, longest))


@pytest.fixture
def student(task):
    return served(task)


@pytest.fixture
def clicks():
    """A student that recommends."""
    return served(RECOMMEND)


@pytest.fixture
def baskets():
    """A student that predicts what a customer buys next."""
    return served(NEXT_BASKET)


def test_a_student_is_shown_by_its_task_its_classes_and_its_network(student, task):
    weights = sum(one.numel() for one in student.model.parameters())
    assert repr(student) == f"<Student: {task.name} ({', '.join(task.classes)}), two-tower of {weights:,} weights>"
    many = category_task(tuple(f"class {number}" for number in range(9)))
    assert "<Student: category (9 classes), two-tower of " in repr(served(many))


def direct(student, texts, pairs):
    """What the network says of the texts as they are, one after another."""
    rows = []
    for place, text in enumerate(texts):
        batch = student.model.encode([text], None if pairs is None else [pairs[place]])
        rows.append(student.model.eval()(batch).logits.softmax(dim=-1)[0].detach().numpy())
    return np.array(rows)


def test_a_run_s_student_gives_the_figures_of_its_summary(tiny_run):
    student, data = load_student(tiny_run.result.folder), load(tiny_run.experiment.data)
    summary = tiny_run.result.summary["student"]
    assert student.classes == data.task.classes

    found = student.predict(data.test.texts, data.test.pairs)
    assert found.dtype == np.float32
    expected = Evaluator(data).test_probabilities(load_model(tiny_run.result.student)).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)
    labels = data.test.labels
    assert accuracy_score(labels, found.argmax(axis=1)) == pytest.approx(summary["accuracy"])
    positive = data.task.positive_index
    assert roc_auc_score(labels == positive, found[:, positive]) == pytest.approx(summary["auc"])

    ranking, gains = data.ranking_test, np.asarray(data.task.gains)
    summed, words = summary["with_bm25"], bm25([*data.public.pairs, *data.proxy.pairs])
    scores, sums = [], []
    for query in np.unique(ranking.queries):
        shown = ranking.examples.take(np.flatnonzero(ranking.queries == query))
        assert len(set(shown.texts)) == 1
        true = gains[shown.labels]
        ranked = student.rank(shown.texts[0], shown.pairs)
        both = student.rank(shown.texts[0], shown.pairs, bm25=words(shown), bm25_weight=summed["weight"])
        assert sorted(ranked.order) == list(range(len(shown)))
        assert np.all(np.diff(ranked.scores[ranked.order]) <= 0)
        if true.any():
            for found, of in ((ranked, scores), (both, sums)):
                places = np.empty(len(shown))
                places[found.order] = np.arange(len(shown))
                of.append(ndcg_score([true], [-places], k=10))
    assert np.mean(scores) == pytest.approx(summary["ndcg@10"], abs=1e-6)
    assert np.mean(sums) == pytest.approx(summed["ndcg@10"], abs=1e-6)


def test_scores_of_a_ranking_are_expected_gains_and_ties_keep_their_order(student):
    titles = [TITLES[0], TITLES[1], TITLES[0]]
    ranked = student.rank("phone", titles)
    expected = student.predict(["phone"] * 3, titles) @ np.array([1.0, 0.5, 0.0])
    np.testing.assert_allclose(ranked.scores, expected, atol=1e-6)
    assert list(ranked.order) in ([0, 2, 1], [1, 0, 2])
    assert [len(part) for part in student.rank("phone", [])] == [0, 0]


@pytest.mark.parametrize(
    ("words", "weight", "told"),
    [
        ([1.0], 1.0, r"shape \[1\] for 2 titles"),
        ([[1.0, 2.0], [3.0, 4.0]], 1.0, r"shape \[2, 2\] for 2 titles"),
        (5.0, 1.0, r"shape \[\] for 2 titles"),
        (["a", "b"], 1.0, "must be numbers"),
        ([1.0, 2.0], "one", "must be numbers"),
        ([1.0, 2.0], None, "belong together"),
        (None, 0.5, "belong together"),
        ([10.0, 20.0], 1e308, "must be finite"),
        ([1.0, np.nan], 1.0, "must be finite"),
        ([1.0, 2.0], np.inf, "must be finite"),
        ([1.0, 2.0], -1.0, "at least 0"),
    ],
)
def test_scores_of_a_search_by_words_are_checked(student, words, weight, told):
    with pytest.raises(DataError, match=told):
        student.rank("phone", TITLES[:2], bm25=words, bm25_weight=weight)


@pytest.mark.parametrize(
    "raw", ["  red \t phone\n", "mail a.b@shop.org now", "call 555 123 4567", "4111 1111 1111 1111"]
)
def test_texts_are_cleaned_like_training_data(student, raw):
    (text,) = clean([raw], None, None, None, 60).texts
    assert text != raw
    np.testing.assert_allclose(student.predict([raw], [raw]), direct(student, [text], [text]), atol=1e-6)
    np.testing.assert_array_equal(student.rank(raw, [raw]).scores, student.rank(text, [text]).scores)
    np.testing.assert_array_equal(student.embed([raw]), student.embed([text]))


def test_a_recommendation_is_that_of_the_joined_history(clicks):
    history, titles = [" red\tphone ", "mail a.b@shop.org"], ["blue shoe", " green  kettle"]
    ranked = clicks.recommend(history, titles)
    joined = "red phone ; mail [email]"
    expected = direct(clicks, [joined] * 2, ["blue shoe", "green kettle"])[:, 1]
    np.testing.assert_allclose(ranked.scores, expected, atol=1e-6)
    assert list(ranked.order) == list(np.argsort(-expected))
    np.testing.assert_allclose(clicks.predict([joined], ["blue shoe"])[0, 1], expected[0], atol=1e-6)


def test_a_semicolon_in_a_title_does_not_divide_it(clicks):
    expected = clicks.recommend(["red , phone"], ["blue , shoe"]).scores
    np.testing.assert_array_equal(clicks.recommend(["red ; phone"], ["blue ; shoe"]).scores, expected)


def test_what_a_customer_buys_next_is_recommended_by_history_and_not_ranked_by_query(baskets):
    ranked = baskets.recommend(["red phone", "red case"], ["blue shoe", "green kettle"])
    expected = direct(baskets, ["red phone ; red case"] * 2, ["blue shoe", "green kettle"])[:, 0]  # gain 1 if bought
    np.testing.assert_allclose(ranked.scores, expected, atol=1e-6)
    with pytest.raises(DataError, match="task 'next-basket' ranks for a history, not for a query: use recommend"):
        baskets.rank("red phone", ["blue shoe"])


def test_campaigns_are_ranked_for_a_customer_by_their_effect():
    student = served(MARKETING_EFFECT)
    campaigns = ("tea week", "soap week", "phones at half price")
    found = student.recommend(["red phone pro", "blue shoe"], campaigns)
    shares = direct(student, ["red phone pro ; blue shoe"] * 3, campaigns)
    treated_bought, treated_not, control_bought, control_not = shares.T
    effect = treated_bought / (treated_bought + treated_not) - control_bought / (control_bought + control_not)
    np.testing.assert_allclose(found.scores, effect, atol=1e-6)
    assert found.order.tolist() == np.argsort(-effect).tolist()


def test_each_title_of_a_history_may_be_as_long_as_a_text(clicks):
    history = ["a" * 60, "b" * 60]
    clicks.recommend(history, ["c"])
    assert clicks.predict([" ; ".join(history)], ["c"]).shape == (1, 2)
    with pytest.raises(DataError, match=r"texts\[0\] has 61 characters in one part, and .* at most 60"):
        clicks.predict([f"a ; {'b' * 61}"], ["c"])


@pytest.mark.parametrize("name", ["two-tower", "static"])
def test_vectors_are_those_that_the_head_compares(name, task, wordpiece_teacher):
    options = SMALL if name == "two-tower" else {"width": 8, "vocabulary": "all"}
    student = served(task, name, options, wordpiece_teacher(task))
    vectors = student.embed(TITLES)
    assert (vectors.dtype, vectors.shape) == (np.float32, (5, 8))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)
    hidden = student.model(student.model.encode(TITLES, TITLES[::-1]), hidden=True).hidden[0].detach().squeeze(1)
    np.testing.assert_allclose(np.concatenate([vectors, vectors[::-1]], axis=1), hidden.numpy(), atol=1e-6)


def test_a_text_without_features_has_the_zero_vector(student):
    assert not student.embed(["!!!"]).any()


def test_results_do_not_depend_on_how_a_call_is_cut(student, monkeypatch):
    texts = [f"{title} {number}" for number in range(3) for title in TITLES]
    whole = student.predict(texts, texts[::-1]), student.embed(texts)
    monkeypatch.setattr(serving, "_CHUNK", 4)
    monkeypatch.setattr(serving, "_BATCH", 3)
    cut = student.predict(texts, texts[::-1]), student.embed(texts)
    for one, other in zip(whole, cut, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    np.testing.assert_allclose(whole[0], direct(student, texts, texts[::-1]), atol=1e-6)
    assert student.predict([], []).shape == (0, 3)


def test_dropout_is_off_and_a_call_is_repeatable(task):
    student = served(task, options={**SMALL, "dropout": 0.5})
    one, other = (student.predict(TITLES, TITLES) for _ in range(2))
    np.testing.assert_array_equal(one, other)
    np.testing.assert_allclose(one, direct(student, TITLES, TITLES), atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s.predict(["a"]), "task 'toy' has pairs of texts: pass pairs"),
        (lambda s: s.predict(["a"], ["b", "c"]), "1 texts have 2 pairs"),
        (lambda s: s.predict("abc", "abc"), r"texts must be a list of strings, not one string: write \[texts\]"),
        (lambda s: s.predict(["a", None], ["b", "c"]), r"texts\[1\] must be a string, not NoneType"),
        (lambda s: s.predict(["a"], [" \n"]), r"pairs\[0\] is empty: leave it out"),
        (lambda s: s.rank("a" * 61, ["b"]), r"query has 61 characters, and .* at most 60 \(data.max_characters\)"),
        (lambda s: s.rank(["a"], ["b"]), "query must be a string, not list"),
        (lambda s: s.rank("a", "b"), "titles must be a list of strings"),
        (lambda s: s.recommend(["a"], ["b"]), "recommend requires a student of histories, .* 'toy': use rank"),
    ],
)
def test_a_call_that_does_not_fit_says_what_to_change(student, call, message):
    with pytest.raises(DataError, match=message):
        call(student)


def test_a_student_of_another_task_says_what_to_use(clicks):
    with pytest.raises(DataError, match=r"'recommend' has no gains to rank by: use recommend\(\)"):
        clicks.rank("a", ["b"])
    with pytest.raises(DataError, match="history is empty: pass the titles of the last clicks"):
        clicks.recommend([], ["b"])
    reviews = served(SENTIMENT)
    assert reviews.predict(["good"]).shape == (1, 2)
    with pytest.raises(DataError, match="task 'sentiment' has one text: leave pairs out"):
        reviews.predict(["good"], ["bad"])
    with pytest.raises(DataError, match=r"recommend requires .* 'sentiment': use predict"):
        reviews.recommend(["good"], ["bad"])


def test_a_student_without_towers_has_no_vectors(task):
    lstm = served(task, "lstm", {"rows": 64, "width": 4})
    with pytest.raises(DataError, match="a student 'lstm' has no vector of a single text: embed requires 'two-tower'"):
        lstm.embed(["a"])


def test_a_run_and_its_student_s_folder_are_the_same_student(tiny_run):
    run, folder = load_student(str(tiny_run.result.folder)), load_student(tiny_run.result.student)
    np.testing.assert_array_equal(run.embed(TITLES), folder.embed(TITLES))
    assert run.task == folder.task


def test_resuming_a_finished_run_describes_a_student_of_an_earlier_version(tiny_run, simulate, tmp_path):
    shutil.copytree(tiny_run.result.folder, tmp_path / "tiny")
    (tmp_path / "tiny" / "student" / DESCRIPTION).unlink()
    with pytest.raises(ModelError, match=r"write it again with fed-distill run .*tiny/experiment.toml --resume"):
        load_student(tmp_path / "tiny")
    simulate(tiny_run.experiment.with_changes({"runtime.folder": str(tmp_path), "runtime.resume": True}))
    again, before = load_student(tmp_path / "tiny"), load_student(tiny_run.result.folder)
    np.testing.assert_array_equal(again.predict(TITLES, TITLES), before.predict(TITLES, TITLES))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "is neither the folder of a student"),
        (["experiment.toml"], "has no student yet: finish it with fed-distill run .*experiment.toml --resume"),
        (["model.json"], "earlier version of fed-distill: write it again with fed-distill run RUN/experiment.toml"),
        (["experiment.toml", "student/model.json"], "write it again with fed-distill run .*/x/experiment.toml --res"),
    ],
)
def test_a_folder_without_a_student_says_what_to_do(tmp_path, files, message):
    folder = tmp_path / "x"
    (folder / "student").mkdir(parents=True)
    for name in files:
        (folder / name).write_text("")
    with pytest.raises(ModelError, match=message):
        load_student(folder)


def test_a_run_that_another_process_writes_is_waited_for(tmp_path):
    folder = tmp_path / "run"
    with (
        RunStore.create(folder, Experiment(name="run")),
        pytest.raises(
            ModelError, match=rf"has no student yet: process {os.getpid()} is running it; wait until it ends"
        ),
    ):
        load_student(folder)
    with pytest.raises(ModelError, match="finish it with fed-distill run"):
        load_student(folder)


@pytest.mark.parametrize("place", ["the student's own", "a pair's part"])
def test_no_code_is_imported_that_a_folder_names(student, tmp_path, monkeypatch, place):
    """Neither from the working folder, which may be the student's, nor an installed module."""
    description = StudentDescription(student.task, 60)
    save_student(tmp_path, student.model, description)
    (tmp_path / "hostile.py").write_text("from pathlib import Path\nPath('ran').write_text('code of the folder')\n")
    written = json.loads((tmp_path / "model.json").read_text(encoding="utf-8"))
    settings = {"kind": "hostile:Model", "settings": {}}
    pair = {"kind": "fed_distill.models.pair:Pair", "settings": {"shared": settings, "own": settings}}
    hostile = settings if place == "the student's own" else pair
    (tmp_path / "model.json").write_text(json.dumps({**written, **hostile}), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"load_student\(imports=...\): student 'hostile:Model' is neither built in"):
        load_student(tmp_path)
    assert not (tmp_path / "ran").exists() and "hostile" not in sys.modules


def test_a_custom_student_is_loaded_if_its_import_path_is_given(tmp_path, monkeypatch):
    (tmp_path / "own_student.py").write_text(
        "from fed_distill.models.two_tower import TwoTower\nclass Own(TwoTower): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    made = served(SENTIMENT, "own_student:Own")
    save_student(tmp_path / "student", made.model, StudentDescription(SENTIMENT, 60))
    with pytest.raises(ModelError, match="neither built in nor listed"):
        load_student(tmp_path / "student")
    loaded = load_student(tmp_path / "student", imports=["own_student:Own"])
    np.testing.assert_array_equal(loaded.predict(["red phone"]), made.predict(["red phone"]))


def test_a_damaged_description_is_named(tmp_path):
    (tmp_path / DESCRIPTION).write_text("{")
    with pytest.raises(ModelError, match=r"student.json is not a student's description"):
        load_student(tmp_path)
