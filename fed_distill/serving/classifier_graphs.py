"""The ONNX graph of a student without towers: token ids to class probabilities.

The LSTM is written down by ONNX's own operator; a transformer is traced by torch's exporter. ``float16`` stores the
large weights in half precision and computes in float32; ``int8`` is onnxruntime's dynamic quantization.
"""

import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

from fed_distill.errors import ModelError
from fed_distill.models.base import TextModel
from fed_distill.models.lstm import LSTM
from fed_distill.serving.tower_graphs import HEADER, Arrays, filled

INPUTS = ("input_ids", "segments")
"""Inputs of a classifier, int64 ``[n, length]``; ``segments`` only for pairs."""
_SMALLEST_HALF = 1024
"""Smaller weights stay float32: they are not worth a Cast."""


def classifier_graph(model: TextModel, pair: bool) -> ModelProto:
    """Return the float32 graph ``input_ids`` and, for pairs, ``segments`` -> ``probabilities`` ``[n, classes]``."""
    return _lstm(model, pair) if isinstance(model, LSTM) else _traced(model, pair)


def float16_storage(model: ModelProto) -> ModelProto:
    """Return a copy that stores its large float32 weights as float16; they are cast after a lookup, or when loaded."""
    copy = ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    for weight in graph.initializer:
        values = numpy_helper.to_array(weight)
        if values.dtype != np.float32 or values.size < _SMALLEST_HALF:
            continue
        name = weight.name
        weight.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}_half"))
        users = [node for node in graph.node if name in node.input]
        if all(node.op_type == "Gather" and node.input[0] == name for node in users):
            for node in users:
                found = node.output[0]
                node.input[0], node.output[0] = f"{name}_half", f"{found}_half"
                place = list(graph.node).index(node)
                graph.node.insert(place + 1, helper.make_node("Cast", [f"{found}_half"], [found], to=TensorProto.FLOAT))
        else:
            graph.node.insert(0, helper.make_node("Cast", [f"{name}_half"], [name], to=TensorProto.FLOAT))
    del graph.value_info[:]  # types of the looked-up rows have changed
    return copy


def int8_quantized(model: ModelProto) -> ModelProto:
    """Return onnxruntime's dynamic quantization: int8 weights of matrix products, LSTMs and embedding tables, each
    matrix with one scale a column and each table with one scale; activations are quantized batch by batch."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder, _quiet():
        source, prepared, target = (Path(folder) / f"{name}.onnx" for name in ("source", "prepared", "int8"))
        source.write_bytes(model.SerializeToString())
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        # Seven bits: with eight, processors without VNNI saturate sums of two products, and give other scores.
        quantize_dynamic(prepared, target, per_channel=True, reduce_range=True, weight_type=QuantType.QInt8)
        quantized = ModelProto()
        quantized.ParseFromString(target.read_bytes())
    return quantized


def _lstm(model: LSTM, pair: bool) -> ModelProto:
    width = model.words.embedding_dim
    directions = (model.forwards, model.backwards)
    values: Arrays = {
        "words": _array(model.words.weight),
        "w": np.stack([_gates(one, "weight_ih_l0") for one in directions]),
        "r": np.stack([_gates(one, "weight_hh_l0") for one in directions]),
        "b": np.stack([np.concatenate([_gates(one, f"bias_{of}_l0") for of in ("ih", "hh")]) for one in directions]),
        "attention": _array(model.attention.weight).T.copy(),
        "attention_bias": _array(model.attention.bias),
        "head": _array(model.head.weight),
        "head_bias": _array(model.head.bias),
        "joined_shape": np.array([0, 0, 2 * width]),
        "zero": np.array(0),
        "one": np.array([1]),
        "two": np.array([2]),
        "lowest": np.array(-np.inf, dtype=np.float32),
    }
    marked = "embedded = Identity(found)"
    if model.segments is not None:
        values["marks"] = _array(model.segments.weight)
        marked = "mark = Gather(marks, segments)  embedded = Add(found, mark)"
    inputs = ", ".join(f"int64[n, length] {name}" for name in INPUTS[: 2 if pair else 1])
    text = f"""{HEADER} lstm ({inputs}) => (float[n, {model.head.out_features}] probabilities)
    {{
        used = Greater(input_ids, zero)  counted = Cast<to=6>(used)  lengths = ReduceSum<keepdims=0>(counted, one)
        found = Gather(words, input_ids)  {marked}  sequence = Transpose<perm=[1, 0, 2]>(embedded)
        by_direction, last, cell = LSTM<direction="bidirectional", hidden_size={width}>(sequence, w, r, b, lengths)
        turned = Transpose<perm=[2, 0, 1, 3]>(by_direction)  states = Reshape(turned, joined_shape)
        products = MatMul(states, attention)  biased = Add(products, attention_bias)  scores = Squeeze(biased, two)
        masked = Where(used, scores, lowest)  weights = Softmax<axis=1>(masked)
        pooled = Einsum<equation="nl,nlw->nw">(weights, states)
        logits = Gemm<transB=1>(pooled, head, head_bias)  probabilities = Softmax<axis=1>(logits)
    }}"""
    return filled(text, values)


def _gates(network: nn.LSTM, name: str) -> npt.NDArray[np.float32]:
    """Return a weight, from torch's gates (input, forget, cell, output) to ONNX's (input, output, forget, cell)."""
    given, forget, cell, output = np.split(_array(network.get_parameter(name)), 4)
    return np.concatenate([given, output, forget, cell])


def _array(weight: Tensor) -> npt.NDArray[np.float32]:
    found: npt.NDArray[np.float32] = weight.detach().float().cpu().numpy()
    return found


class _Probabilities(nn.Module):
    """A student as a function of its fields, for the exporter."""

    def __init__(self, model: TextModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, *fields: Tensor) -> Tensor:
        logits = self.model(dict(zip(INPUTS, fields, strict=False))).logits
        return torch.softmax(logits.float(), dim=-1)


def _traced(model: TextModel, pair: bool) -> ModelProto:
    encoded = model.encode(["red shoe", "a kettle"], ["blue shoe, size 4", "cup"] if pair else None)
    names = INPUTS[: 2 if pair else 1]
    if tuple(encoded) != names:
        raise ModelError(
            f"a student {model.kind!r} has inputs {', '.join(encoded)}: only {', '.join(names)} can be exported"
        )
    shape = {0: "n", 1: "length"}
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            _Probabilities(model.eval()),
            tuple(encoded[name] for name in names),
            dynamo=True,
            opset_version=20,
            input_names=list(names),
            output_names=["probabilities"],
            dynamic_shapes=((shape,) * len(names),),
            verbose=False,
        )
    if program is None:
        raise ModelError(f"torch cannot export a student {model.kind!r}")
    found: ModelProto = program.model_proto
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the exporters' warnings about parts that are not used here (torchvision, deprecations inside)."""
    import logging

    names = ("torch.onnx._internal.exporter._registration", "root")
    loggers = [logging.getLogger(None if name == "root" else name) for name in names]
    levels = [one.level for one in loggers]
    for one in loggers:
        one.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)
