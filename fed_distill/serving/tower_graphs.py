"""ONNX graphs of the students with towers: one that gives a text's vector, and the head that compares two vectors.

They are written down operator by operator instead of traced: the vector of a text is a sum of table rows, for which
five operators suffice. A row is stored times exp of its importance, so that a feature is looked up once.

Smaller tables: ``float16``; ``int8``, codes with one float16 scale a row, ``row = scale * code`` with the largest entry
at 127 (symmetric quantization, Jacob et al., CVPR 2018, eq. 1, for each row); and ``pruned``, int8 without the rows of
the smallest norm (magnitude pruning, Han et al., NeurIPS 2015, for rows instead of weights). Arithmetic is in float32.
Heads are stored in float32: they are less than a hundredth of a student.
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
turn its vector. Twice this share costs 1.5 points of nDCG@10 on PriceRunner (docs/student.md)."""
HEADER = '<ir_version: 10, opset_import: ["" : 20]>'
_SUMS = {
    "float32": "rows = Gather(table, {ids})  sum = ReduceSum<keepdims=0>(rows, one)",
    "float16": "short = Gather(table, {ids})  rows = Cast<to=1>(short)  sum = ReduceSum<keepdims=0>(rows, one)",
    "int8": """short = Gather(table, {ids})  codes = Cast<to=1>(short)
        short_scales = Gather(scale, {ids})  scales = Cast<to=1>(short_scales)
        sum = Einsum<equation="nf,nfw->nw">(scales, codes)""",
}
_COMPARED = """product = Mul(text, pair)  scaled_product = Mul(product, product_scale)
        difference = Sub(text, pair)  distance = Abs(difference)  scaled_distance = Mul(distance, distance_scale)
        cosine = ReduceSum<keepdims=1>(product, one)
        compared = Concat<axis=1>(scaled_product, scaled_distance, cosine)"""


def vectors_graph(model: Towers, storage: str) -> ModelProto:
    """Return the graph ``ids`` int32 ``[n, features]`` -> ``vectors`` float32 ``[n, width]``.

    :param storage: ``float32``, ``float16``, ``int8`` or ``pruned``
    """
    table, first, ids = merged_table(model), "", "ids"
    values: Arrays = {"one": np.array([1]), "smallest": np.array([SMALLEST], dtype=np.float32)}
    if storage == "pruned":
        storage, first, ids = "int8", "short_rows = Gather(row_of, ids)  kept = Cast<to=6>(short_rows)", "kept"
        table, values["row_of"] = pruned_rows(table, PRUNED_SHARE)
    if storage == "int8":
        values["table"], values["scale"] = int8_rows(table)
    else:
        values["table"] = table.astype(storage)
    text = f"""{HEADER} vectors (int32[n, features] ids) => (float[n, {model.width}] vectors)
    {{
        {first} {_SUMS[storage].format(ids=ids)}
        norm = ReduceL2<keepdims=1>(sum, one)  divisor = Max(norm, smallest)  vectors = Div(sum, divisor)
    }}"""
    return filled(text, values)


def head_graph(model: Towers, pair: bool) -> ModelProto:
    """Return the graph ``text`` and, for pairs, ``pair``, float32 ``[n, width]`` -> ``probabilities`` ``[n, classes]``.

    It is ``Towers.score`` with a softmax."""
    values: Arrays = {
        name: model.head.get_parameter(key).detach().float().cpu().numpy()
        for name, key in (("w1", "0.weight"), ("b1", "0.bias"), ("w2", "2.weight"), ("b2", "2.bias"))
    }
    values["product_scale"] = np.array([model.width**0.5], dtype=np.float32)
    if pair:
        values |= {"one": np.array([1]), "distance_scale": np.array([model.width**0.25], dtype=np.float32)}
    inputs = ", ".join(f"float[n, {model.width}] {name}" for name in (("text", "pair") if pair else ("text",)))
    text = f"""{HEADER} head ({inputs}) => (float[n, {len(values["b2"])}] probabilities)
    {{
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


def int8_rows(table: Table) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float16]]:
    """Return int8 codes ``[rows, width]`` and float16 scales ``[rows]`` with ``scale * code`` close to ``table``.

    A row of zeros has scale 0. An entry is off by at most half a scale, which is the row's largest entry / 127."""
    largest = np.abs(table).max(axis=1)
    scales = (largest / 127).astype(np.float16)
    exact = scales.astype(np.float32)
    divisors = np.where(exact > 0, exact, np.float32(np.inf))
    codes = np.rint(table / divisors[:, None]).clip(-127, 127).astype(np.int8)
    return codes, scales


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
