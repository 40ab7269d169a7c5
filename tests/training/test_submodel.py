"""Rows that examples touch, and putting trained rows back."""

import torch

from fed_distill.training.submodel import completed, renumber, row_counts, touched_rows
from fed_distill.transport.messages import PartialWeights


def test_touched_rows_are_sorted_distinct_and_hold_the_padding_row(student):
    encoded = {"text_ids": torch.tensor([[5, 3, 0]]), "pair_ids": torch.tensor([[3, 9, 9]])}
    counts = row_counts(student, [encoded, encoded])
    assert counts["table.weight"].nonzero().flatten().tolist() == [3, 5, 9]
    assert counts["table.weight"][[3, 5, 9]].tolist() == [4, 2, 4]
    assert touched_rows(counts)["table.weight"].tolist() == [0, 3, 5, 9]


def test_renumbered_examples_point_at_the_same_rows(student):
    encoded = {"text_ids": torch.tensor([[5, 3, 0]]), "pair_ids": torch.tensor([[3, 9, 9]])}
    rows = touched_rows(row_counts(student, [encoded]))
    renumbered = renumber(student, encoded, rows)
    for name, values in encoded.items():
        assert torch.equal(rows["table.weight"][renumbered[name].long()], values)


def test_completed_weights_keep_untouched_rows():
    base = {"table": torch.arange(8.0).reshape(4, 2), "bias": torch.zeros(2)}
    partial = PartialWeights({"table": torch.tensor([[9.0, 9.0]]), "bias": torch.ones(2)}, {"table": torch.tensor([2])})
    whole = completed(partial, base)
    assert whole["table"].tolist() == [[0.0, 1.0], [2.0, 3.0], [9.0, 9.0], [6.0, 7.0]]
    assert whole["bias"].tolist() == [1.0, 1.0]
    assert base["table"][2].tolist() == [4.0, 5.0]
