"""The table of ranking models: scores, metrics and sizes of each library's models, on tiny ones."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from experiments.benchmarks.rankers import ByCosine, ByGain, Model
from experiments.benchmarks.ranking_models import Row, table
from experiments.benchmarks.ranking_speed import Speed, measure_in_process
from fed_distill import load_student
from fed_distill.data.student_description import StudentDescription
from fed_distill.models.student_folder import save_student

SPEED = Speed(81_234.0, (1.234, 56.0), (0.1, 1234.5), 345.6)


def test_cosine_scores_are_those_of_the_vectors():
    vectors = {"a": [2.0, 0.0], "b": [0.0, 0.5], "c": [-3.0, 0.0], "d": [1.0, 1.0], "none": [0.0, 0.0]}
    asked = []

    def encode(texts):
        asked.extend(texts)
        return np.array([vectors[text] for text in texts], dtype=np.float32)

    ranker = ByCosine(encode)
    expected = [1.0, 0.0, -1.0, 0.5**0.5, 0.0]
    np.testing.assert_allclose(ranker.scores(["a"] * 5, ["a", "b", "c", "d", "none"]), expected, atol=1e-7)
    assert sorted(asked) == ["a", "b", "c", "d", "none"]  # each text once
    stored = ranker.embed(["a", "b", "c", "d", "none"])
    np.testing.assert_allclose(ranker.compare(ranker.embed(["a"])[0], stored), expected, atol=1e-7)


def test_a_student_ranks_as_it_is_served(tiny_run):
    student = load_student(tiny_run.result.folder)
    ranker, titles = ByGain(student), ["red phone", "kettle maxi", "blue shoe"]
    expected = student.rank("red phone", titles).scores
    np.testing.assert_allclose(ranker.scores(["red phone"] * 3, titles), expected)
    np.testing.assert_allclose(
        ranker.compare(ranker.embed(["red phone"])[0], ranker.embed(titles)), expected, atol=1e-6
    )


def test_differences_are_paired_with_the_first_row(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"x" * 2_340_000)
    (tmp_path / "tokenizer.json").write_bytes(b"x" * 160_000)
    (tmp_path / "README.md").write_bytes(b"x" * 9_000_000)
    first = Row(Model("one", "labels", "student", str(tmp_path)), [0.5, 1.0], SPEED)
    second = Row(Model("two", "nothing", "student", str(tmp_path)), [0.4, 0.9], Speed(None, (1.0, 2.0), None, 9.0))
    lines = table([first, second]).splitlines()
    # mean 0.75, standard error 0.25, Student's quantile for one degree of freedom 12.7062
    assert lines[2] == "| one | labels | 0.7500 ± 3.1766 |  | 2.5 | 81,000 | 1.23 / 56 | 0.10 / 1,234 | 346 |"
    assert lines[3].startswith("| two | nothing | 0.6500 ± 3.1766 | −0.1000 ± 0.0000 | 2.5 |  | 1.00 / 2.00 |  | 9 |")


def test_a_model_is_measured_in_its_own_process(tiny_run, tmp_path):
    texts = {"queries": ["red phone", "shoe"], "titles": [f"kettle maxi {number}" for number in range(30)]}
    (tmp_path / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
    model = Model("student", "labels", "student", str(tiny_run.result.folder / "student"))
    found = measure_in_process(model, tmp_path / "texts.json", seconds=0.01)
    assert found.texts is not None and found.texts > 0
    assert found.stored is not None and 0 < found.stored[0] <= found.stored[1] and found.titles[0] > 0
    assert 10 < found.memory < 100_000  # MB, of an interpreter with torch
    assert Speed.read(json.loads(json.dumps(found.described()))) == found
    with pytest.raises(SystemExit, match=r"gone could not be measured: .*ModelError"):
        measure_in_process(Model("gone", "labels", "student", str(tmp_path)), tmp_path / "texts.json", 0.01)


@pytest.fixture
def static_model():
    """A Model2Vec with random vectors of three words and an unknown token, which it leaves out of a text."""
    package = pytest.importorskip("model2vec", reason="pip install 'fed-distill[bench]'")
    words = {"[PAD]": 0, "[UNK]": 1, "red": 2, "phone": 3, "shoe": 4}
    tokenizer = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    vectors = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    return package.StaticModel(vectors, tokenizer, normalize=True)


def test_model2vec_with_a_head_starts_from_its_vectors(static_model, task):
    from experiments.benchmarks.ranking_static import with_head

    texts = ["red phone", "shoe", "red mystery shoe shoe", "mystery"]
    student = with_head(static_model, task)
    ids = student.encode(texts, None)["text_ids"]
    with torch.no_grad():
        found = student.vectors(ids).numpy()
    np.testing.assert_allclose(found, static_model.encode(texts), atol=1e-6)


def test_model2vec_trains_on_the_pairs_that_are_relevant(static_model, task, make_examples, tmp_path):
    from experiments.benchmarks.ranking_static import relevant_pairs, train_model2vec

    public, proxy = make_examples(3), make_examples(3, seed=1)
    public.labels[:] = [0, 1, 0]
    data = SimpleNamespace(task=task, public=public, proxy=proxy)
    soft = torch.tensor([[0.2, 0.7, 0.1], [0.5, 0.3, 0.2], [0.0, 0.1, 0.9]])
    queries, titles = relevant_pairs(data, soft)
    assert queries == [public.texts[0], public.texts[2], proxy.texts[1]]
    assert titles == [public.pairs[0], public.pairs[2], proxy.pairs[1]]
    static_model.save_pretrained(tmp_path / "start")
    (tmp_path / "end").mkdir()
    train_model2vec(tmp_path / "start", ["red", "shoe"] * 20, ["red phone", "shoe shoe"] * 20, tmp_path / "end")
    before, after = (Model("", "", "model2vec", str(tmp_path / name)).ranker() for name in ("start", "end"))
    for query, other in (("red", "shoe shoe"), ("shoe", "red phone")):
        title = "red phone" if query == "red" else "shoe shoe"
        gap = [float(np.subtract(*one.scores([query] * 2, [title, other]))) for one in (before, after)]
        assert gap[1] >= gap[0]


def test_the_teacher_is_distilled_to_a_vector_of_each_token(wordpiece_teacher, task, tmp_path):
    pytest.importorskip("skeletoken", reason="pip install 'fed-distill[bench]'")
    from experiments.benchmarks.ranking_static import distil_model2vec

    (tmp_path / "teacher").mkdir()
    save_student(tmp_path / "teacher", wordpiece_teacher(task), StudentDescription(task, 512))
    (tmp_path / "static").mkdir()
    distil_model2vec(tmp_path / "teacher", tmp_path / "static")
    found = Model("", "", "model2vec", str(tmp_path / "static")).ranker().scores(["red", "red"], ["red", "kettle"])
    assert found[0] == pytest.approx(1.0, abs=1e-3) and found[1] < found[0]


@pytest.fixture
def encoder(wordpiece_teacher, task, tmp_path):
    """The folder of a tiny sentence encoder of sentence-transformers with mean pooling."""
    package = pytest.importorskip("sentence_transformers", reason="pip install 'fed-distill[bench]'")
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    (tmp_path / "bert").mkdir()
    save_student(tmp_path / "bert", wordpiece_teacher(task), StudentDescription(task, 512))
    network = Transformer(str(tmp_path / "bert"), max_seq_length=32)
    model = package.SentenceTransformer(modules=[network, Pooling(16, pooling_mode="mean"), Normalize()], device="cpu")
    model.save_pretrained(str(tmp_path / "encoder"))
    return tmp_path / "encoder"


def test_an_exported_encoder_gives_the_vectors_of_sentence_transformers(encoder, tmp_path):
    from experiments.benchmarks.ranking_encoders import export_encoder

    texts = ["red phone", "shoe", "red phone ultra pro mini maxi", "kettle " * 60]
    (tmp_path / "onnx").mkdir()
    export_encoder(encoder, texts, tmp_path / "onnx")
    torch_model, onnx_model = (
        Model("", "", kind, str(path)).ranker()
        for kind, path in (("sentence-transformers", encoder), ("onnx", tmp_path / "onnx"))
    )
    np.testing.assert_allclose(onnx_model.embed(texts), torch_model.embed(texts), atol=1e-5)


def test_an_encoder_learns_the_order_of_graded_pairs(encoder, task, make_examples, tmp_path):
    from experiments.benchmarks.ranking_encoders import fine_tune_encoder, graded_pairs

    public, proxy = make_examples(64), make_examples(2, seed=1)
    data = SimpleNamespace(task=task, public=public, proxy=proxy)
    pairs, targets = graded_pairs(data, torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]))
    assert pairs.texts == (*public.texts, *proxy.texts)
    assert targets[:64] == [(1.0, 0.5, 0.0)[label] for label in public.labels]
    assert targets[64:] == pytest.approx([0.75, 0.0])
    fine_tune_encoder(encoder, pairs, targets, 1e-3, 0, tmp_path / "tuned")
    before, after = (
        Model("", "", "sentence-transformers", str(path)).ranker() for path in (encoder, tmp_path / "tuned")
    )
    agree = [np.corrcoef(one.scores(pairs.texts, pairs.pairs), targets)[0, 1] for one in (before, after)]
    assert agree[1] > agree[0]
