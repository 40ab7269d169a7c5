"""Randomized labels in a message: what decides their order, and which ones are left out of one that is too large."""

import numpy as np
import pytest
import torch

from fed_distill.data.examples import Examples
from fed_distill.errors import UplinkRejected
from fed_distill.payloads.base import Context
from fed_distill.payloads.released_labels import LONGEST, MOST_BYTES, MOST_EXAMPLES, ReleasedLabels, most_examples
from fed_distill.transport.messages import Uplink
from fed_distill.transport.records import check_uplink


def examples(texts, pairs=None):
    none = np.full(len(texts), -1)
    return Examples(tuple(texts), None if pairs is None else tuple(pairs), none, none, ("a",) * len(texts))


def of(texts, pairs=None, labels=None, classes=3):
    count = len(texts)
    labels = torch.zeros(count, dtype=torch.int64) if labels is None else torch.tensor(labels)
    return ReleasedLabels.of(examples(texts, pairs), labels, torch.arange(classes).expand(count, classes))


def test_the_order_is_that_of_the_texts_whatever_a_merchants_table_has():
    texts, pairs, labels = ["tent", "shoes", "tent", "Öl"], ["red", "red", "blue", "red"], [0, 1, 2, 1]
    sent = of(texts, pairs, labels)
    for order in ([3, 1, 2, 0], [2, 0, 1, 3]):
        again = of(*([one[row] for row in order] for one in (texts, pairs, labels)))
        for name, values in sent.to_records()["released_labels"].items():
            assert torch.equal(values, again.to_records()["released_labels"][name])
    found = sent.examples("a")
    assert list(zip(found.texts, found.pairs, sent.labels.tolist(), strict=True)) == [
        ("shoes", "red", 1), ("tent", "blue", 2), ("tent", "red", 0), ("Öl", "red", 1),
    ]  # fmt: skip


def test_a_share_of_them_has_their_texts_only():
    sent = of([f"title {number}" for number in range(10)], labels=[number % 3 for number in range(10)])
    part = sent.at_most(4, "a")
    assert part.texts == ["title 0", "title 2", "title 5", "title 7"]
    assert part.labels.tolist() == [0, 2, 2, 1]
    assert sent.at_most(10, "a") is sent
    assert bytes(part.text.tolist()) == b"title 0title 2title 5title 7"


def test_what_does_not_fit_a_message_is_left_out_evenly():
    many = of([f"{number:06}" for number in range(MOST_EXAMPLES + 2)])
    assert many.texts[:3] == ["000000", "000002", "000004"]
    assert len(many.labels) == MOST_EXAMPLES // 2 + 1
    long = of([f"{number:03}" + "x" * (LONGEST - 3) for number in range(MOST_BYTES // LONGEST + 2)])
    assert [text[:3] for text in long.texts[:3]] == ["000", "002", "004"]
    for sent in (many, long):
        sent.validate(Context({}, 1, 3))


def test_an_overlong_example_is_left_out_wherever_it_is():
    for texts in (["a" * (LONGEST + 1), "b", "c"], ["b", "c", "z" * (LONGEST + 1)]):
        assert of(texts).texts == ["b", "c"]
    assert of(["a" * LONGEST, "b"]).texts == ["a" * LONGEST, "b"]
    assert len(of(["a" * (MOST_BYTES + 1)]).labels) == 0


def test_texts_that_are_equal_in_a_message_are_sent_once():
    sent = of(["a\ud800", "a?", "b"], labels=[1, 2, 0])
    assert (sent.texts, sent.labels.tolist()) == (["a?", "b"], [1, 0])
    sent.validate(Context({}, 1, 3))


def test_with_many_classes_fewer_examples_fit():
    assert most_examples(4) == MOST_EXAMPLES
    assert most_examples(2**14) == 2**10
    sent = of([f"{number:04}" for number in range(2**10 + 1)], classes=2**14)
    assert len(sent.labels) == 2**9 + 1
    sent.validate(Context({}, 1, 2**14))


@pytest.mark.parametrize("claimed", [1, 4, 10**9])
def test_a_merchant_counts_for_the_labels_that_it_sends(claimed):
    """One that claims more would raise the limit of another (``federation.max_share``)."""
    sent = of(["a", "b", "c"])
    check_uplink(Uplink("m", 3, (sent,)), Context({}, 1, 3))
    with pytest.raises(UplinkRejected, match=f"merchant m: {claimed} examples, but 3 labels"):
        check_uplink(Uplink("m", claimed, (sent,)), Context({}, 1, 3))
