"""``prune_student``: a smaller student that is used like any other, from public data and the student alone."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard

from fed_distill import load_student
from fed_distill.data import load
from fed_distill.data.student_description import StudentDescription
from fed_distill.errors import CheckpointError, ConfigError, ModelError
from fed_distill.models.pruning import NetworkShape, pruned, shape_of
from fed_distill.models.student_folder import save_student
from fed_distill.reporting.callbacks import CallbackList
from fed_distill.serving import prune as pruning
from fed_distill.serving.export import export_student
from fed_distill.serving.prune import prune_student
from fed_distill.serving.runtime import load_exported

STUDENT = {
    "name": "bert",
    "student.model": "bert-mini",
    "student.options": {"rows": 256, "width": 16, "layers": 3},
    "training.server.learning_rate": 3e-3,
    "training.server.batch_size": 8,
    "controls": [],
}
QUIET = CallbackList([])


@pytest.fixture(scope="module", autouse=True)
def short():
    """A few timed rankings are enough."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fed_distill.serving.measuring._RUNS", 3)
        patch.setattr("fed_distill.serving.measuring._WARM_UP", 1)
        yield


@pytest.fixture(scope="module")
def run(tiny_experiment, simulate, tmp_path_factory):
    """A finished run, its experiment and folder, with a bert-mini student whose predictions differ by text."""
    experiment = tiny_experiment(tmp_path_factory.mktemp("runs"), STUDENT)
    folder = simulate(experiment)[0]
    model, draw = load_student(folder).model, torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.2 * torch.randn(weight.shape, generator=draw))
    save_student(folder / "student", model, StudentDescription.read(folder / "student"))
    return experiment, folder


@pytest.fixture(scope="module")
def made(run, tmp_path_factory):
    """The run's student with one layer and half of the neurons: what was found, and the folder."""
    to = tmp_path_factory.mktemp("pruned") / "made"
    return prune_student(run[1], to, 1, 32, 2.0, QUIET), to


def weights(folder):
    return (folder / "student" / "model.safetensors").read_bytes()


def test_the_folder_is_used_like_that_of_a_run(run, made, tmp_path):
    found, to = made
    student = load_student(to)
    assert shape_of(student.model) == NetworkShape(1, 32) == found.after
    assert student.classes == load_student(run[1]).classes
    described = export_student(to, tmp_path / "export", ["float32"])  # measures quality on the run's test data
    assert described.student == student.digest and described.trained.measured.quality is not None
    exported = load_exported(tmp_path / "export")
    texts, pairs = ["usb c hub", "kettle"], ["Anker hub", "blue kettle"]
    np.testing.assert_allclose(exported.predict(texts, pairs), student.predict(texts, pairs), atol=1e-5)
    again = prune_student(to, tmp_path / "again", None, 16, 1.0, QUIET)
    assert (again.digest, again.before, again.after) == (student.digest, NetworkShape(1, 32), NetworkShape(1, 16))


def test_the_rows_are_of_the_students_in_both_folders(run, made):
    found, to = made
    before, without, distilled = found.rows
    for row, folder in ((before, run[1]), (distilled, to)):
        assert row.parameters == sum(one.numel() for one in load_student(folder).model.network.parameters())
        assert row.bytes == len(weights(folder))
        assert 0.0 < row.p50_ms <= row.p99_ms
    assert (without.parameters, without.bytes) == (distilled.parameters, distilled.bytes)
    assert without.quality != distilled.quality
    # BERT: 12 h^2 + 13 h weights a layer of width h = 16 with feed-forward width 64, and 2 h + 1 for each neuron
    assert before.parameters - distilled.parameters == 2 * (12 * 16**2 + 13 * 16) + 32 * (2 * 16 + 1)


def test_equal_arguments_give_equal_weights(run, made, tmp_path):
    prune_student(run[1], tmp_path / "twin", 1, 32, 2.0, QUIET)
    assert weights(tmp_path / "twin") == weights(made[1])


def test_distillation_brings_the_pruned_student_closer_to_the_one_before(run, tmp_path):
    experiment, folder = run
    proxy, whole = load(experiment.data).proxy, load_student(folder)
    prune_student(folder, tmp_path / "long", 1, None, 30.0, QUIET)
    expected = whole.predict(proxy.texts, proxy.pairs)

    def divergence(probabilities):
        return float((expected * np.log(expected / probabilities)).sum(axis=1).mean())

    small = pruned(whole.model, NetworkShape(1, 64))
    with torch.no_grad():
        before = torch.softmax(small(small.encode(proxy.texts, proxy.pairs)).logits, dim=-1).numpy()
    after = load_student(tmp_path / "long").predict(proxy.texts, proxy.pairs)
    assert divergence(after) < 0.5 * divergence(before)


def shuffled(examples):
    return replace(examples, labels=np.roll(examples.labels, 1))


def other_data(monkeypatch, *, valid):
    """Read the same public data with other labels at merchants and in the test, and in ``valid`` if asked."""

    def read(config):
        data = load(config)
        merchants = {name: replace(one, train=shuffled(one.train)) for name, one in data.merchants.items()}
        ranked = [replace(one, examples=shuffled(one.examples)) for one in (data.ranking_test, data.ranking_valid)]
        changed = replace(data, merchants=merchants, test=shuffled(data.test), ranking_test=ranked[0])
        return replace(changed, valid=shuffled(data.valid), ranking_valid=ranked[1]) if valid else changed

    monkeypatch.setattr(pruning, "load", read)


def qualities(found):
    return [row.quality for row in found.rows]


def test_nothing_depends_on_test_examples_or_merchants_and_no_weight_on_validation(run, made, tmp_path, monkeypatch):
    other_data(monkeypatch, valid=False)
    found = prune_student(run[1], tmp_path / "other", 1, 32, 2.0, QUIET)
    assert (weights(tmp_path / "other"), qualities(found)) == (weights(made[1]), qualities(made[0]))
    other_data(monkeypatch, valid=True)
    found = prune_student(run[1], tmp_path / "validation", 1, 32, 2.0, QUIET)
    assert weights(tmp_path / "validation") == weights(made[1])
    assert qualities(found) != qualities(made[0])


def test_of_a_private_run_no_figure_depends_on_merchants(run, made, tmp_path, monkeypatch):
    private = tmp_path / "private"
    shutil.copytree(run[1], private)
    changed = run[0].with_changes({"privacy.unit": "example", "privacy.epsilon": 3.0})
    (private / "experiment.toml").write_text(changed.to_toml(), encoding="utf-8")
    found = prune_student(private, tmp_path / "a", 1, 32, 2.0, QUIET)
    assert found.private and found.metric == "macro_f1"
    other_data(monkeypatch, valid=True)
    again = prune_student(private, tmp_path / "b", 1, 32, 2.0, QUIET)
    assert qualities(again) == qualities(found)
    assert weights(tmp_path / "a") == weights(tmp_path / "b") == weights(made[1])
    card = (tmp_path / "a" / "student" / "README.md").read_text(encoding="utf-8")
    assert "the privacy guarantee is that of the student before pruning" in " ".join(card.split())
    assert "macro-F1 is measured on the server's own validation examples" in card


def test_the_card_says_what_was_removed_from_which_student(run, made):
    former = ModelCard.load(run[1] / "student" / "README.md")
    card = ModelCard.load(made[1] / "student" / "README.md")
    text = " ".join(card.text.split())
    assert f"the student with the digest `{load_student(run[1]).digest}`" in text
    assert "kept 1 of 3 layers and, in each feed-forward network, 32 of 64 neurons" in text
    assert card.text.rstrip().endswith(former.text.strip())
    assert former.data.eval_results and card.data.eval_results is None  # those figures are not this student's
    assert (card.data.tags, card.data.library_name) == (former.data.tags, "fed-distill")
    assert f"| pruned and distilled | {made[0].rows[-1].parameters:,} |" in card.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((4, None, 1.0), "--layers 4: the student has 3"),
        ((None, None, 1.0), "nothing would be removed"),
        ((1, None, 0.0), "--epochs 0: choose a number above 0"),
        ((1, None, float("nan")), "--epochs nan"),
        ((1, None, float("inf")), "--epochs inf"),
    ],
)
def test_a_mistake_is_named_and_nothing_is_written(arguments, message, run, tmp_path):
    with pytest.raises(ConfigError, match=message):
        prune_student(run[1], tmp_path / "none", *arguments, QUIET)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_taken_stays_as_it_is(run, made):
    before = weights(made[1])
    with pytest.raises(ConfigError, match="exists and is not empty"):
        prune_student(run[1], made[1], 1, None, 1.0, QUIET)
    assert weights(made[1]) == before
    with pytest.raises(ConfigError, match="inside the student's own folder"):
        prune_student(run[1], run[1] / "student" / "small", 1, None, 1.0, QUIET)


def test_other_students_and_folders_are_refused(tiny_run, run, tmp_path):
    with pytest.raises(ModelError, match="'two-tower' has no layers to remove"):
        prune_student(tiny_run.result.folder, tmp_path / "none", 1, None, 1.0, QUIET)
    with pytest.raises(CheckpointError, match="it is not the folder of a run"):
        prune_student(run[1] / "student", tmp_path / "none", 1, None, 1.0, QUIET)
