"""Rows that examples touch, and putting trained rows back."""

import torch

from fed_distill.models.weights import PartialWeights
from fed_distill.training.submodel import completed, most_used, row_counts, submodel_of

ENCODED = {"text_ids": torch.tensor([[5, 3, 0]]), "pair_ids": torch.tensor([[3, 9, 9]])}


def test_touched_rows_are_sorted_distinct_and_hold_the_padding_row(student):
    submodel = submodel_of(student, [ENCODED, ENCODED])
    for table in ("bag.table", "bag.importance"):
        assert submodel.rows[table].tolist() == [0, 3, 5, 9]
        assert submodel.counts[table].tolist() == [0, 4, 2, 4]
        assert submodel.trained[table].tolist() == [False, True, True, True]


def test_renumbered_examples_point_at_the_same_rows(student):
    submodel = submodel_of(student, [ENCODED])
    renumbered = submodel.renumber(ENCODED)
    for name, values in ENCODED.items():
        assert torch.equal(submodel.rows["bag.table"][renumbered[name].long()], values)


def test_under_dp_what_is_trained_and_sent_depends_on_public_examples_alone(student):
    public = {"text_ids": torch.tensor([[5, 7]]), "pair_ids": torch.tensor([[7, 0]])}
    submodel = submodel_of(student, [ENCODED], public)
    assert submodel.rows["bag.table"].tolist() == [0, 3, 5, 7, 9]
    assert submodel.trained["bag.table"].tolist() == [False, False, True, True, False]
    sent = submodel.sent({"bag.table": torch.arange(5.0).unsqueeze(1), "head": torch.ones(2)})
    assert sent.rows["bag.table"].tolist() == [0, 5, 7]
    assert sent.counts["bag.table"].tolist() == [0, 1, 2]
    assert sent.arrays["bag.table"].flatten().tolist() == [0.0, 2.0, 3.0]
    assert sent.arrays["head"].tolist() == [1.0, 1.0]


def test_completed_weights_keep_untouched_rows():
    base = {"table": torch.arange(8.0).reshape(4, 2), "bias": torch.zeros(2)}
    partial = PartialWeights({"table": torch.tensor([[9.0, 9.0]]), "bias": torch.ones(2)}, {"table": torch.tensor([2])})
    whole = completed(partial, base)
    assert whole["table"].tolist() == [[0.0, 1.0], [2.0, 3.0], [9.0, 9.0], [6.0, 7.0]]
    assert whole["bias"].tolist() == [1.0, 1.0]
    assert base["table"][2].tolist() == [4.0, 5.0]


def test_only_the_most_used_public_rows_may_be_trained(student):
    counts = torch.tensor([0, 3, 9, 3, 1, 9])
    assert most_used(counts, 3).tolist() == [0, 3, 9, 0, 0, 9]
    assert torch.equal(most_used(counts, None), counts)
    public = student.encode(["red shoe red", "blue shoe"], ["red", "kettle"])
    private = student.encode(["mini phone"], ["maxi phone"])
    every = row_counts(student, [public])["bag.table"]
    found = submodel_of(student, [private], public, 4)
    trained = found.rows["bag.table"][found.trained["bag.table"]]
    assert len(trained) == 4
    others = every.clone()
    others[trained] = 0
    assert int(every[trained].min()) >= int(others.max())
    assert torch.equal(found.trained["bag.table"], found.trained["bag.importance"])
