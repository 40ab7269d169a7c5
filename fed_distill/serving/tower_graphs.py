"""ONNX graphs of the students with towers: one that gives a text's vector, and the head that compares two vectors.

They are written down operator by operator instead of traced: the vector of a text is a sum of table rows, for which
five operators suffice. A row is stored times exp of its importance, so that a feature is looked up once.

Smaller tables are ``float16`` or codes times a float16 scale, ``row = scale * code`` (symmetric quantization, Jacob et
al., CVPR 2018, eq. 1 with zero-point 0): ``int8``, with one scale for ``BLOCK`` rows, whose largest entry has code 127;
``int4``, two codes a byte and one scale a row, whose largest entry has code 7; and ``pruned``, int8 without the rows of
the smallest norm (magnitude pruning, Han et al., NeurIPS 2015, for rows instead of weights). They store the head's
weights as float16. Arithmetic is in float32.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from onnx import ModelProto, checker, numpy_helper, parser

from fed_distill.models.towers import SMALLEST, Towers

Table = npt.NDArray[np.float32]
Arrays = dict[str, npt.NDArray[Any]]

PRUNED_SHARE = 0.25
"""Share of the rows that ``pruned`` removes: a text has dozens of features, so that those of the smallest norm hardly
turn its vector. Twice this share costs 1.5 points of nDCG@10 on PriceRunner (docs/how-to/student.md)."""
BLOCK = 8
"""Consecutive rows that share a scale in ``int8``. With a scale a row, a table of width 64 would be more than a quarter
of its float32 size; with a scale a column, one row of large norm would make all others coarse."""
_OFFSET = 8
"""What is added to a code of four bits, so that it is stored without a sign: ONNX shifts unsigned integers only."""
HEADER = '<ir_version: 10, opset_import: ["" : 20]>'
_SUMS = {
    "float32": "rows = Gather(table, {ids})  sum = ReduceSum<keepdims=0>(rows, one)",
    "float16": "short = Gather(table, {ids})  rows = Cast<to=1>(short)  sum = ReduceSum<keepdims=0>(rows, one)",
    "int8": """short = Gather(table, {ids})  codes = Cast<to=1>(short)
        blocks = Div({ids}, block)  short_scales = Gather(scale, blocks)  scales = Cast<to=1>(short_scales)
        sum = Einsum<equation="nf,nfw->nw">(scales, codes)""",
    "int4": """bytes = Gather(table, {ids})  short_scales = Gather(scale, {ids})  scales = Cast<to=1>(short_scales)
        low_bits = BitwiseAnd(bytes, low_half)  low = Cast<to=1>(low_bits)
        high_bits = BitShift<direction="RIGHT">(bytes, half_byte)  high = Cast<to=1>(high_bits)
        low_sum = Einsum<equation="nf,nfw->nw">(scales, low)  high_sum = Einsum<equation="nf,nfw->nw">(scales, high)
        shifted = Concat<axis=1>(low_sum, high_sum)  total = ReduceSum<keepdims=1>(scales, one)
        shift = Mul(total, offset)  padded = Sub(shifted, shift)  sum = Slice(padded, zero, width, one)""",
}
_COMPARED = """product = Mul(text, pair)  scaled_product = Mul(product, product_scale)
        difference = Sub(text, pair)  distance = Abs(difference)  scaled_distance = Mul(distance, distance_scale)
        cosine = ReduceSum<keepdims=1>(product, one)
        compared = Concat<axis=1>(scaled_product, scaled_distance, cosine)"""


def vectors_graph(model: Towers, storage: str) -> ModelProto:
    """Return the graph ``ids`` int32 ``[n, features]`` -> ``vectors`` float32 ``[n, width]``.

    :param storage: ``float32``, ``float16``, ``int8``, ``int4`` or ``pruned``
    """
    table, first, ids = merged_table(model), "", "ids"
    values: Arrays = {"one": np.array([1]), "smallest": np.array([SMALLEST], dtype=np.float32)}
    if storage == "pruned":
        storage, first, ids = "int8", "short_rows = Gather(row_of, ids)  kept = Cast<to=6>(short_rows)", "kept"
        table, values["row_of"] = pruned_rows(table, PRUNED_SHARE)
    if storage == "int8":
        values["table"], values["scale"] = int8_rows(table)
        values["block"] = np.array([BLOCK], dtype=np.int32)
    elif storage == "int4":
        values["table"], values["scale"] = int4_rows(table)
        values |= {"low_half": np.array([15], dtype=np.uint8), "half_byte": np.array([4], dtype=np.uint8)}
        values |= {"offset": np.array([_OFFSET], dtype=np.float32), "zero": np.array([0])}
        values["width"] = np.array([model.width])
    else:
        values["table"] = table.astype(storage)
    text = f"""{HEADER} vectors (int32[n, features] ids) => (float[n, {model.width}] vectors)
    {{
        {first} {_SUMS[storage].format(ids=ids)}
        norm = ReduceL2<keepdims=1>(sum, one)  divisor = Max(norm, smallest)  vectors = Div(sum, divisor)
    }}"""
    return filled(text, values)


def head_graph(model: Towers, pair: bool, storage: str) -> ModelProto:
    """Return the graph ``text`` and, for pairs, ``pair``, float32 ``[n, width]`` -> ``probabilities`` ``[n, classes]``.

    It is ``Towers.score`` with a softmax. storage: ``float32``, or another for weights as float16."""
    weights = head_weights(model)
    values: Arrays = dict(weights)
    cast = ""
    if storage != "float32":  # onnxruntime casts constants once, when it loads the graph
        values |= {f"short_{name}": values.pop(name).astype(np.float16) for name in weights}
        cast = "  ".join(f"{name} = Cast<to=1>(short_{name})" for name in weights)
    values["product_scale"] = np.array([model.width**0.5], dtype=np.float32)
    if pair:
        values |= {"one": np.array([1]), "distance_scale": np.array([model.width**0.25], dtype=np.float32)}
    inputs = ", ".join(f"float[n, {model.width}] {name}" for name in (("text", "pair") if pair else ("text",)))
    text = f"""{HEADER} head ({inputs}) => (float[n, {len(weights["b2"])}] probabilities)
    {{
        {cast}
        {_COMPARED if pair else "compared = Mul(text, product_scale)"}
        sums = Gemm<transB=1>(compared, w1, b1)  units = Relu(sums)
        logits = Gemm<transB=1>(units, w2, b2)  probabilities = Softmax<axis=1>(logits)
    }}"""
    return filled(text, values)


def merged_table(model: Towers) -> Table:
    """Return the table with each row times exp of its importance, float32 ``[rows, width]``; row 0 is 0."""
    weights = torch.exp(model.bag.importance)
    table: Table = (model.bag.table * weights).detach().float().cpu().numpy()
    table[0] = 0.0
    return table


def head_weights(model: Towers) -> dict[str, npt.NDArray[np.float32]]:
    """Return the head's weights: ``w1`` ``[units, inputs]``, ``b1``, ``w2`` ``[classes, units]`` and ``b2``."""
    return {
        name: model.head.get_parameter(key).detach().float().cpu().numpy()
        for name, key in (("w1", "0.weight"), ("b1", "0.bias"), ("w2", "2.weight"), ("b2", "2.bias"))
    }


def int8_rows(table: Table) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float16]]:
    """Return int8 codes ``[rows, width]`` and float16 scales, one for ``BLOCK`` rows, ``[ceil(rows / BLOCK)]``.

    Scale times code is close to ``table``: off by at most half a scale, which is the block's largest entry / 127. A
    block of zeros has scale 0."""
    largest = np.abs(table).max(axis=1)
    scales = (np.maximum.reduceat(largest, np.arange(0, len(table), BLOCK)) / 127).astype(np.float16)
    return _codes(table, np.repeat(scales, BLOCK)[: len(table)], 127).astype(np.int8), scales


def int4_rows(table: Table) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float16]]:
    """Return codes of four bits in bytes ``[rows, ceil(width / 2)]``, and float16 scales ``[rows]``.

    Scale times code is close to ``table``: off by at most half a scale, which is the row's largest entry / 7. Codes are
    stored plus 8, those of the first half of the columns in the lower bits; an odd width is filled up with code 0."""
    scales = (np.abs(table).max(axis=1) / 7).astype(np.float16)
    codes = (_codes(table, scales, 7) + _OFFSET).astype(np.uint8)
    half = (table.shape[1] + 1) // 2
    low, high = codes[:, :half], np.full((len(table), half), _OFFSET, dtype=np.uint8)
    high[:, : table.shape[1] - half] = codes[:, half:]
    return low | high << np.uint8(4), scales


def _codes(table: Table, scales: npt.NDArray[np.float16], most: int) -> Table:
    """Return the whole numbers of at most ``most`` whose products with ``scales`` ``[rows]`` are closest to ``table``;
    0 where the scale is 0."""
    exact = scales.astype(np.float32)
    divisors = np.where(exact > 0, exact, np.float32(np.inf))
    codes: Table = np.rint(table / divisors[:, None]).clip(-most, most)
    return codes


def pruned_rows(table: Table, share: float) -> tuple[Table, npt.NDArray[np.unsignedinteger[Any]]]:
    """Remove the ``share`` of the rows with the smallest Euclidean norm; of equal norms, later rows go first.

    :returns: the rows that are kept, ``[kept, width]``, beginning with row 0; and the new number of each row,
        ``[rows]``, 0 for those removed, which count as padding
    """
    norms = np.linalg.norm(table[1:], axis=1)
    kept = np.sort(np.argsort(-norms, kind="stable")[: len(norms) - int(share * len(norms))]) + 1
    row_of: npt.NDArray[np.unsignedinteger[Any]]
    row_of = np.zeros(len(table), dtype=np.uint16 if len(kept) < 1 << 16 else np.uint32)
    row_of[kept] = np.arange(1, len(kept) + 1)
    remaining: Table = table[np.concatenate([[0], kept])]
    return remaining, row_of


def filled(text: str, values: Arrays) -> ModelProto:
    """Return the graph of ``text``, in ONNX's own notation, with the constants ``values``."""
    model = parser.parse_model(text)
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in values.items())
    checker.check_model(model, full_check=True)
    return model
