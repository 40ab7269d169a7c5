"""What graphs store: rows times their weights, codes within half a step, rows of large norm."""

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fed_distill.serving.tower_graphs import int4_rows, int8_rows, merged_table, pruned_rows, vectors_graph

TABLE = np.array([[0, 0], [3, 4], [0.1, 0], [0, -2], [1, 0]], dtype=np.float32)


def test_a_row_is_stored_times_exp_of_its_importance(student):
    student.bag.importance.data[5] = np.log(2.0)
    np.testing.assert_allclose(merged_table(student)[5], 2 * student.bag.table[5].detach().numpy(), rtol=1e-6)
    assert not merged_table(student)[0].any()


@given(arrays(np.float32, (11, 4), elements=st.floats(-100, 100, width=16)))
def test_a_code_of_eight_bits_is_within_half_a_step_of_its_block_of_rows(table):
    codes, scales = int8_rows(table)
    assert (codes.dtype, scales.dtype, scales.shape) == (np.int8, np.float16, (2,))
    for block, rows in enumerate((slice(0, 8), slice(8, 11))):
        step = np.abs(table[rows]).max() / 127
        error = np.abs(float(scales[block]) * codes[rows] - table[rows])
        assert np.all(error <= 0.5 * step * 1.2 + 1e-5)  # a scale has 11 bits: at 127 steps that is another 1/16


@given(arrays(np.float32, (5, 3), elements=st.floats(-100, 100, width=16)))
def test_a_code_of_four_bits_is_within_half_a_step_of_its_row(table):
    """Columns 0 and 1 are the lower halves of the bytes 0 and 1, and column 2 is the upper half of byte 0."""
    stored, scales = int4_rows(table)
    assert (stored.dtype, scales.dtype, stored.shape) == (np.uint8, np.float16, (5, 2))
    for row in range(5):
        step = np.abs(table[row]).max() / 7
        bits = [stored[row, 0] & 15, stored[row, 1] & 15, stored[row, 0] >> 4, stored[row, 1] >> 4]
        for column, value in enumerate([*table[row], 0.0]):
            code = int(bits[column]) - 8
            assert abs(code) <= 7
            assert abs(float(scales[row]) * code - value) <= 0.5 * step * 1.01 + 1e-6


def test_codes_computed_by_hand():
    table = np.array([[0, 0], [0.7, -0.35], [1.27, 0.2], [0, 0]], dtype=np.float32)
    codes, scales = int8_rows(table)  # one block, whose largest entry is 1.27: a scale of 0.01
    np.testing.assert_array_equal(codes, [[0, 0], [70, -35], [127, 20], [0, 0]])
    np.testing.assert_allclose(scales, [0.01], rtol=1e-3)
    stored, row_scales = int4_rows(table)  # scales 0.1 and 1.27 / 7; -0.35 / 0.1 is -3.5, a little less after float16
    np.testing.assert_array_equal(stored, [[0x88], [15 | 4 << 4], [15 | 9 << 4], [0x88]])
    np.testing.assert_allclose(row_scales, [0, 0.1, 1.27 / 7, 0], rtol=1e-3)


def test_rows_of_the_smallest_norm_are_removed():
    kept, row_of = pruned_rows(TABLE, 0.5)
    np.testing.assert_array_equal(kept, TABLE[[0, 1, 3]])  # norms 5, 0.1, 2, 1 of rows 1 to 4
    np.testing.assert_array_equal(row_of, [0, 1, 0, 2, 0])
    np.testing.assert_array_equal(pruned_rows(TABLE, 0.0)[0], TABLE)


@pytest.mark.parametrize(("variant", "most"), [("float16", 0.51), ("int8", 0.253), ("int4", 0.135), ("pruned", 0.2)])
def test_a_smaller_variant_is_as_small_as_it_should_be(variant, most, task):
    from fed_distill.models import build_student

    model = build_student("two-tower", {"rows": 8192}, task)
    whole = len(vectors_graph(model, "float32").SerializeToString())
    assert whole == pytest.approx(8192 * 64 * 4, rel=0.01)
    assert len(vectors_graph(model, variant).SerializeToString()) < most * whole
    onnx.checker.check_model(vectors_graph(model, variant), full_check=True)
