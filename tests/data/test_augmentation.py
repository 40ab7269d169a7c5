"""Texts are changed at the rate that was asked for, by draws of each example's own, and never emptied."""

import numpy as np
import pytest

from fed_distill.config import AugmentationConfig
from fed_distill.data.augmentation import augmented
from fed_distill.data.examples import Examples
from fed_distill.errors import DataError


def examples_of(texts, pairs=None):
    size = len(texts)
    rows = np.arange(size, dtype=np.int64)
    return Examples(tuple(texts), None if pairs is None else tuple(pairs), rows % 2, rows, ("shop",) * size)


def changed(texts, seed=0, **shares):
    return augmented(examples_of(texts), AugmentationConfig(**shares), np.random.default_rng(seed)).texts


def test_every_known_expression_is_replaced_by_another_of_its_group():
    found = changed(["Apple Smartphone 64GB", "red coffee maker", "新款手机壳"] * 20, synonyms=0.999)
    assert set(found[0::3]) == {"Apple mobile phone 64GB", "Apple cell phone 64GB"}
    assert all("coffee machine" in text or "espresso machine" in text for text in found[1::3])
    assert set(found[2::3]) == {"新款保护套", "新款防摔壳"}


def test_letters_whose_capitals_and_small_letters_differ_in_number_or_kind(tmp_path):
    """An i of a pattern matches the Turkish İ and ı, which are folded to others; ß is folded to two letters."""
    dictionary = tmp_path / "synonyms.txt"
    dictionary.write_text("disk, platte\nStraße, Weg\n", encoding="utf-8")
    texts = ["HARİCİ DİSK", "dısk", "DISK", "die STRASSE", "die straße", "Strasse"]
    found = changed(texts, synonyms=0.999, dictionary=dictionary)
    assert found == ("HARİCİ DİSK", "dısk", "platte", "die Weg", "die Weg", "Weg")


def test_an_expression_within_a_word_is_another_word(tmp_path):
    dictionary = tmp_path / "synonyms.txt"
    dictionary.write_text("pad, tablet\n\n手机,移动电话\n", encoding="utf-8")
    found = changed(["ipad mousepad", "PAD pro", "买手机"], synonyms=0.999, dictionary=dictionary)
    assert found == ("ipad mousepad", "tablet pro", "买移动电话")


def test_words_are_left_out_at_the_rate_but_never_all():
    long = changed([" ".join(map(str, range(100)))] * 50, deletion=0.3)
    kept = [len(text.split()) for text in long]
    assert np.mean(kept) == pytest.approx(70, abs=3)
    assert all(list(map(int, text.split())) == sorted(map(int, text.split())) for text in long)
    assert all(changed(["two words", "einzig", "好书"] * 30, deletion=0.99))


def test_characters_are_swapped_with_their_neighbours():
    found = changed(["kettle"] * 30, characters=0.999)
    ways = {"kettle"[:i] + "kettle"[i + 1] + "kettle"[i] + "kettle"[i + 2 :] for i in range(5)}
    assert set(found) == ways
    assert changed(["好 a"], characters=0.999) == ("好 a",)


def test_an_example_is_changed_by_its_own_draws_and_keeps_its_place():
    """Which others there are does not matter: with another example in another place, all others are changed alike."""
    texts = ["red phone case", "blue kettle with timer", "green shoe size 42"]
    shares = AugmentationConfig(synonyms=0.5, deletion=0.3, characters=0.3)
    one = augmented(examples_of(texts, texts), shares, np.random.default_rng(1))
    other = augmented(examples_of([texts[0], "?", texts[2]], texts), shares, np.random.default_rng(1))
    assert (one.texts[0], one.texts[2], one.pairs) == (other.texts[0], other.texts[2], other.pairs)
    assert one.labels.tolist() == [0, 1, 0]
    assert one.texts != augmented(examples_of(texts, texts), shares, np.random.default_rng(2)).texts


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("alone\n", "line 1: "),
        ("a, b\n\nc,\n", "line 3: "),
        ("\n", "no synonyms"),
    ],
)
def test_a_dictionary_that_cannot_be_meant_is_said_by_line(content, message, tmp_path):
    dictionary = tmp_path / "synonyms.txt"
    dictionary.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        changed(["a"], synonyms=0.5, dictionary=dictionary)
    with pytest.raises(DataError, match="cannot read the synonyms"):
        changed(["a"], synonyms=0.5, dictionary=tmp_path / "none.txt")
