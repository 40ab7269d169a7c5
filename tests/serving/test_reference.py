"""``reference.json``: what it has of the held-out data, what counts as seen, and what it must not tell."""

import json

import numpy as np
import pytest

from fed_distill.data import load
from fed_distill.data.examples import Examples, FederatedData, MerchantData
from fed_distill.errors import ModelError
from fed_distill.serving import export as exporting
from fed_distill.serving.export import export_student
from fed_distill.serving.exported_folder import ExportDescription
from fed_distill.serving.reference import FeatureCounter, Histogram, Reference, feature_ids, load_reference
from fed_distill.serving.reference_data import build_reference, seen_rows
from fed_distill.serving.runtime import load_exported
from fed_distill.text.encoders import encoder_of, unknown_token
from fed_distill.text.hashing import bag_rows


def examples(texts, pairs):
    zeros = np.zeros(len(texts), dtype=np.int64)
    return Examples(tuple(texts), tuple(pairs), zeros, np.arange(len(texts)), ("shop",) * len(texts))


@pytest.fixture
def data(task):
    """Data of which each part has a word of its own."""
    merchant = examples(["secret"], ["secret thing"])
    parts = {name: examples([name], [f"{name} phone"]) for name in ("public", "proxy", "valid", "test")}
    return FederatedData(
        task,
        public=parts["public"],
        public_valid=parts["valid"],
        proxy=parts["proxy"],
        merchants={"shop": MerchantData("shop", merchant, merchant.take([]), merchant.take([]))},
        valid=parts["valid"],
        test=parts["test"],
    )


def rows_of(*texts):
    return set(bag_rows(texts, 512).ravel().tolist()) - {0}


def encode(texts, pairs):
    return {"text_ids": bag_rows(texts, 512)}


def test_seen_is_what_the_server_has_and_nothing_of_merchants(data, exported):
    scorer = load_exported(exported("two-tower")[1])
    reference = build_reference(data, encode, None, {"float32": scorer})
    seen = set(np.flatnonzero(reference.seen_rows).tolist()) - {0}
    assert seen == rows_of("public", "public phone", "proxy", "proxy phone")
    assert not rows_of("secret", "thing") <= seen
    assert reference.source == "test"
    unseen = [row for row in bag_rows(["test"], 512)[0] if row and row not in seen]
    assert reference.texts["text"].unseen_share == pytest.approx(
        len(unseen) / np.count_nonzero(bag_rows(["test"], 512))
    )


def test_without_test_data_the_server_validates(data, exported):
    scorer = load_exported(exported("two-tower")[1])
    empty = data.test.take([])
    site = FederatedData(data.task, data.public, data.public_valid, data.proxy, {}, empty, empty)
    reference = build_reference(site, encode, None, {"float32": scorer})
    assert reference.source == "public_valid"
    expected = scorer.rank("valid", ["valid phone"]).scores
    assert reference.scores["float32"]["rank"] == Histogram.of(expected)


@pytest.mark.parametrize("kind", ["two-tower", "static", "lstm", "bert-mini"])
def test_features_are_counted_like_a_slow_twin(kind, exported):
    folder = exported(kind)[1]
    specification = json.loads((folder / "student.json").read_text())["encoding"]
    encoder = encoder_of(specification, folder)
    unknown = unknown_token(specification, folder)
    public = ["red phone pro", "blue shoe"]
    counter = FeatureCounter(encoder, seen_rows(encoder, public, unknown), hashed=True)
    texts = ["red shoe", "green kettle 手机", "blue shoe", "red phone pro", "kettle"]
    special = set(feature_ids(encoder, [""]).ravel().tolist()) | {0}
    known = set(feature_ids(encoder, public).ravel().tolist()) - special - {unknown}
    ids = [[one for one in feature_ids(encoder, [text])[0].tolist() if one not in special] for text in texts]
    features, unseen = counter.count(texts)
    assert features.tolist() == [len(one) for one in ids]
    assert unseen.tolist() == [sum(number not in known for number in one) for one in ids]
    assert unseen[1] > 0 and unseen[2] == unseen[3] == 0


def test_the_unknown_token_is_unseen(exported):
    folder = exported("static")[1]
    specification = json.loads((folder / "student.json").read_text())["encoding"]
    encoder, unknown = encoder_of(specification, folder), unknown_token(specification, folder)
    assert set(feature_ids(encoder, ["𒀀"])[0].tolist()) == {unknown}
    counter = FeatureCounter(encoder, seen_rows(encoder, ["phone 𒀀"], unknown), hashed=False)
    assert counter.ceiling == 1.0
    assert [one.tolist() for one in counter.count(["𒀀"])] == [[1], [1]]


def test_an_export_with_the_data_of_its_run_has_a_reference(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "latencies", lambda *_: [1.0])
    run, data = tiny_run.result.folder, load(tiny_run.experiment.data)
    description = export_student(run, tmp_path / "export", ["int8"])
    content = (tmp_path / "export" / "reference.json").read_text()
    reference = load_reference(tmp_path / "export", ExportDescription.read(tmp_path / "export"))
    ranked = data.ranking_test.examples
    assert reference.texts["pair"].length == Histogram.of([len(text) for text in ranked.pairs])
    queries = [ranked.texts[row] for row in np.unique(data.ranking_test.queries, return_index=True)[1]]
    assert reference.texts["text"].length == Histogram.of([len(text) for text in queries])
    for variant in description.variants:
        found = load_exported(tmp_path / "export", variant)
        for route, part in (("rank", ranked), ("score", data.test)):
            scores = found.predict(part.texts, part.pairs).astype(np.float64) @ found.gains
            assert reference.scores[variant][route] == Histogram.of(scores)
    words = {word for text in (*data.test.texts, *data.test.pairs) for word in text.split() if len(word) > 3}
    assert not [word for word in words if word in content and word not in ("score", "text", "pair", "test", "edges")]


def test_an_export_of_an_earlier_version_has_none(exported):
    folder = exported("two-tower")[1]
    assert "reference.json" not in [path.name for path in folder.iterdir()]
    old = json.loads((folder / "export.json").read_text())
    del old["reference"]
    assert ExportDescription.model_validate(old).reference is None
    assert load_reference(folder, ExportDescription.read(folder)) is None


@pytest.mark.parametrize("damage", ["missing", "changed", "leads out"])
def test_a_damaged_reference_is_refused(damage, tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "latencies", lambda *_: [1.0])
    folder = tmp_path / "export"
    description = export_student(tiny_run.result.folder, folder, ["float32"])
    path = folder / "reference.json"
    if damage == "changed":
        path.write_text(path.read_text().replace('"test"', '"rest"'))
    else:
        path.rename(tmp_path / "elsewhere")
        if damage == "leads out":
            path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match=r"reference\.json"):
        load_reference(folder, description)


@pytest.mark.parametrize(
    "change",
    [
        {"seen": "no base64!"},
        {"format": 2},
        {"texts": {"text": {"length": {"edges": [1, 1], "counts": [1, 1, 1]}, "features": None, "unseen_share": 0}}},
        {"scores": {"float32": {"rank": {"edges": [float("nan")], "counts": [1, 1]}}}},
        {"scores": {"float32": {"rank": {"edges": [1.0], "counts": [1, -1]}}}},
        {"scores": {"float32": {"rank": {"edges": [1.0], "counts": [1]}}}},
        {"text": "one"},
    ],
)
def test_an_inconsistent_reference_is_refused(change):
    right = {"format": 1, "source": "test", "texts": {}, "scores": {}, "seen": ""}
    assert Reference.model_validate(right).seen_rows.tolist() == []
    with pytest.raises(ValueError, match="validation error"):
        Reference.model_validate({**right, **change})
