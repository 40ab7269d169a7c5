"""The student in JavaScript equals the one in Python, whatever the text and the engine's version of Unicode."""

import json
import shutil
from hashlib import sha256

import numpy as np
import pytest
from hypothesis import strategies as st

from fed_distill import load_student, seeds
from fed_distill.data.student_description import StudentDescription
from fed_distill.errors import ConfigError, DataError, ModelError
from fed_distill.models import build_student
from fed_distill.serving.conformance import TOLERANCE
from fed_distill.serving.export import export_student
from fed_distill.serving.exported_folder import CONFORMANCE, WEB, WEB_FILES
from fed_distill.serving.runtime import load_exported
from fed_distill.serving.student import Student
from fed_distill.serving.web_export import check_web
from fed_distill.text.cleaning import collapse, mask
from fed_distill.text.hashing import code_kinds, normalize
from tests.serving.browser import drawn, needs_node, run_node

BLOCK = 4096


@needs_node
@pytest.mark.parametrize("kind", ["two-tower", "two-tower, one text", "static"])
def test_texts_of_the_conformance_file_have_its_rows_vectors_and_probabilities(kind, exported, web):
    examples = json.loads((exported(kind)[1] / CONFORMANCE).read_text("utf-8"))["examples"]
    texts = [one["text"] for one in examples]
    pairs = [[one["pair"] for one in examples]] if "pair" in examples[0] else []
    encoded, vectors, probabilities = run_node(
        web(kind), ["tryEncode", texts], ["embed", texts], ["predict", texts, *pairs]
    )
    for one, found in zip(examples, encoded, strict=True):
        rows = [row for row in one["encoded"]["text_ids"] if row]
        assert found == {"cleaned": one["cleaned"], "rows": rows}
    np.testing.assert_allclose(vectors, [one["vector"] for one in examples], rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(probabilities, [one["probabilities"] for one in examples], rtol=0, atol=TOLERANCE)


@needs_node
@pytest.mark.parametrize("kind", ["two-tower", "static"])
def test_an_int8_student_equals_the_exported_one_of_that_variant(kind, exported, web):
    texts = ["usb-c hub 7in1", "Kühlschrank A+++ weiß", "手机壳 iphone15", "☕ café ﬁlter", "!!!"] * 2
    student = load_exported(exported(kind)[1], "int8")
    vectors, ranked = run_node(web(kind, "int8"), ["embed", texts], ["rank", texts[0], texts])
    np.testing.assert_allclose(vectors, student.embed(texts), rtol=0, atol=TOLERANCE)
    expected = student.rank(texts[0], texts)
    np.testing.assert_allclose(ranked["scores"], expected.scores, rtol=0, atol=TOLERANCE)
    order = ranked["order"]  # words that are unknown make titles whose scores differ by rounding alone
    assert np.all(np.diff(expected.scores[order]) <= 2 * TOLERANCE)
    assert all(order.index(place) < order.index(place + 5) for place in range(5))  # of equal titles, the first is first


PERSONAL = (
    *("jane.doe@example.org", "ü@b.co", "tel:", "MOBİLE:", "mobıl:", "WhatſApp: ", "Call ", "电话：", "手机 "),
    *("+49", "+1 ", "555-123-4567", "(555) 123-4567", "138 1234 5678", "4111 1111 1111 1111", "3782 822463 10005"),
    *("411111111111111١", "٠١٢٣٤٥٦", "𝟙𝟚𝟛𝟜𝟝𝟞𝟟", "30 12345678", "4006381333931", "6212345678901234567"),
    *(" ", "-", "/", ")", "(", "_", "ü", "\u0345", "\u0301", "\U0001fae9", "x"),
)
"""Parts of texts with personal data, and of those that only resemble them."""


@needs_node
@pytest.mark.parametrize(
    ("strategy", "count"),
    [
        (st.text(max_size=60), 2000),
        (st.text(st.characters(categories=["L", "M", "N", "So", "Zs", "Cs"]), max_size=60), 1500),
        (st.text(st.sampled_from("aAßſıİΣςﬁ㎏½手がｶﾞ각️👩‍❤1١-@ \ud800\udc00\x1c\x85\ufeff"), max_size=40), 1500),
        (st.lists(st.sampled_from(PERSONAL), max_size=6).map("".join), 1500),
    ],
    ids=["any", "words", "special", "personal"],
)
def test_random_texts_have_the_rows_of_python(strategy, count, exported, web):
    student = load_student(exported("two-tower")[0])
    texts = drawn(strategy, count)
    (encoded,) = run_node(web(), ["tryEncode", texts])
    usable = 0
    for text, found in zip(texts, encoded, strict=True):
        # JSON joins two halves of a surrogate pair, which Python's strings can hold apart.
        text = json.loads(json.dumps(text))
        try:
            student.embed([text])
        except DataError:
            assert "error" in found, text
            continue
        usable += 1
        cleaned = mask(collapse(text))
        ids = student.model.encode([cleaned], None)["text_ids"][0]
        assert found["rows"] == ids[ids > 0].tolist(), text
        if found["cleaned"] != cleaned:
            assert "\uffff" in found["cleaned"], text  # a code point that this Unicode does not have
    assert usable > count / 3


@needs_node
def test_every_code_point_is_normalized_as_in_python(web):
    (found,) = run_node(web(), ["digests", BLOCK])
    kinds = code_kinds()
    for block, digest in enumerate(found):
        codes = range(block * BLOCK, (block + 1) * BLOCK)
        normalized = normalize(mask(collapse(" ".join(f"a{chr(code)}" for code in codes))))
        kept = "".join(one for one in normalized if kinds[ord(one)])
        assert digest == sha256(kept.encode()).hexdigest(), f"U+{codes[0]:04X} to U+{codes[-1]:04X}"


@needs_node
def test_an_engine_that_does_not_know_a_character_refuses_it(web, tmp_path):
    folder = shutil.copytree(web(), tmp_path / "web")
    path = folder / "student.json"
    content = json.loads(path.read_text("utf-8"))
    runs = content["unicode"]["kinds"]
    edges = np.cumsum(runs[::2])
    place = int(np.searchsorted(edges, 0xE0080, side="right"))
    assert runs[2 * place + 1] == 4  # unassigned in every version
    runs[2 * place + 1] = 1
    path.write_text(json.dumps(content), "utf-8")
    known, unknown = run_node(folder, ["embed", ["手机"]], ["embed", ["a \U000e0080"]])
    assert len(known) == 1
    assert "does not know U+E0080" in unknown["error"] and "update" in unknown["error"]


@needs_node
def test_unusable_texts_and_calls_are_errors_that_say_where(web):
    found = run_node(
        web(),
        ["rank", "  ", ["a"]],
        ["rank", "a", ["a", "é" * 301]],
        ["rank", "a", ["𝔘" * 300]],
        ["rank", "a", [7]],
        ["predict", ["a"]],
        ["rank", "a", []],
    )
    messages = [one.get("error") for one in found]
    assert messages[0] == "query is empty: leave it out"
    assert "titles[1] has 301 characters" in messages[1]
    assert messages[2] is None
    assert messages[3] == "titles[0] must be a string, not number"
    assert "a pair for each text" in messages[4]
    assert found[5] == {"order": [], "scores": []}
    (single,) = run_node(web("two-tower, one text"), ["rank", "a", ["b"]])
    assert "no gains" in single["error"]


@needs_node
def test_damaged_files_are_refused(web, tmp_path):
    cut = shutil.copytree(web(), tmp_path / "cut")
    (cut / "weights.bin").write_bytes((cut / "weights.bin").read_bytes()[:-4])
    newer = shutil.copytree(web(), tmp_path / "newer")
    path = newer / "student.json"
    path.write_text(path.read_text("utf-8").replace('"format": 1', '"format": 2', 1), "utf-8")
    assert "bytes, and must have" in run_node(cut, ["embed", ["a"]])[0]["error"]
    assert "has format 2" in run_node(newer, ["embed", ["a"]])[0]["error"]


def test_only_students_with_towers_and_two_variants_are_written(searching, task):
    with seeds.scope(0, "other student"):
        lstm = Student(build_student("lstm", {"rows": 64, "width": 4}, task), StudentDescription(task, 60))
    with pytest.raises(ModelError, match="cannot be exported for a browser: only 'two-tower' and 'static' can"):
        check_web(lstm, "int8")
    with pytest.raises(ConfigError, match="no variant 'float16'; it has: int8, float32"):
        check_web(searching, "float16")
    assert check_web(searching, "int8") == "int8"


def test_an_export_has_a_folder_for_the_browser_if_asked(exported, web, tmp_path):
    folder, without = exported("two-tower")
    export_student(folder, tmp_path / "export", ["float32"], quality=False, web="float32")
    files = {path.name: path.read_bytes() for path in (tmp_path / "export" / WEB).iterdir()}
    assert files == {path.name: path.read_bytes() for path in web().iterdir()}
    assert set(files) == set(WEB_FILES)
    assert load_exported(tmp_path / "export").digest == load_exported(without).digest
    assert not (without / WEB).exists()
    with pytest.raises(ConfigError, match="no variant 'float16'"):
        export_student(folder, tmp_path / "other", ["float32"], quality=False, web="float16")
    assert not (tmp_path / "other").exists()
