"""What graphs store: rows times their weights, codes within half a step, rows of large norm."""

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fed_distill.serving.tower_graphs import int8_rows, merged_table, pruned_rows, vectors_graph

TABLE = np.array([[0, 0], [3, 4], [0.1, 0], [0, -2], [1, 0]], dtype=np.float32)


def test_a_row_is_stored_times_exp_of_its_importance(student):
    student.bag.importance.data[5] = np.log(2.0)
    np.testing.assert_allclose(merged_table(student)[5], 2 * student.bag.table[5].detach().numpy(), rtol=1e-6)
    assert not merged_table(student)[0].any()


@given(arrays(np.float32, (6, 4), elements=st.floats(-100, 100, width=16)))
def test_a_code_is_within_half_a_step(table):
    codes, scales = int8_rows(table)
    assert (codes.dtype, scales.dtype) == (np.int8, np.float16)
    steps = np.abs(table).max(axis=1, keepdims=True) / 127
    error = np.abs(scales[:, None].astype(np.float32) * codes - table)
    assert np.all(error <= 0.5 * steps * 1.2 + 1e-5)  # a scale has 11 bits: at 127 steps that is another 1/16


def test_rows_of_the_smallest_norm_are_removed():
    kept, row_of = pruned_rows(TABLE, 0.5)
    np.testing.assert_array_equal(kept, TABLE[[0, 1, 3]])  # norms 5, 0.1, 2, 1 of rows 1 to 4
    np.testing.assert_array_equal(row_of, [0, 1, 0, 2, 0])
    np.testing.assert_array_equal(pruned_rows(TABLE, 0.0)[0], TABLE)


@pytest.mark.parametrize(("variant", "most"), [("float16", 0.51), ("int8", 0.27), ("pruned", 0.21)])
def test_a_smaller_variant_is_as_small_as_it_should_be(variant, most, task):
    from fed_distill.models import build_student

    model = build_student("two-tower", {"rows": 8192}, task)
    whole = len(vectors_graph(model, "float32").SerializeToString())
    assert whole == pytest.approx(8192 * 64 * 4, rel=0.01)
    assert len(vectors_graph(model, variant).SerializeToString()) < most * whole
    onnx.checker.check_model(vectors_graph(model, variant), full_check=True)
