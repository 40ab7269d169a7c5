"""Hugging Face sequence classifiers as models, for teachers and students.

BERT, DistilBERT and MobileBERT get eager attention, an additive four-dimensional mask and positions and segments of
their own for every example, because per-example gradients (Opacus, torch.func) need all three.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from fed_distill.errors import ConfigError
from fed_distill.models.adapters import Adapters, Prefix, add_adapters
from fed_distill.models.base import Outputs, TextModel
from fed_distill.text.encoded import Encoded, as_tensors
from fed_distill.text.quiet import quiet
from fed_distill.text.tokens import SHORTEST, HashedTokens, PretrainedTokens, Tokens

PER_EXAMPLE = ("bert", "distilbert", "mobilebert")
"""Architectures whose forward pass is prepared for per-example gradients."""


class Transformer(TextModel):
    """A sequence classifier of any architecture, described by its Hugging Face configuration."""

    kind = "fed_distill.models.transformer:Transformer"
    files: Mapping[str, str] = {"tokenizer": "tokenizer.json"}

    def __init__(
        self,
        classes: int,
        pair: bool,
        *,
        config: Mapping[str, Any],
        max_length: int,
        tokenizer: str | None = None,
        network: PreTrainedModel | None = None,
        lora_rank: int | None = None,
        ia3: bool = False,
        prefix_length: int | None = None,
    ) -> None:
        """config: a Hugging Face configuration as a dict. max_length: maximum number of tokens of a text or pair.

        tokenizer: text of a ``tokenizer.json``; None for hashed word pieces. network: an existing network; None to
        create it from ``config`` with new weights. lora_rank, ia3, prefix_length: as of ``Adapters``.
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
        if network is None:
            network = network_of(AutoModelForSequenceClassification, config, num_labels=classes)
        positions = positions_of(network)
        if positions is not None and positions < max_length:
            raise ConfigError(f"max_length is {max_length:,} tokens, and the network has {positions:,} positions")
        self.network = network
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
        self.tables = {} if self._pad_id else dict.fromkeys(names, ("input_ids",))
        self.prefix: Prefix | None = None
        self.unsaved_prefix = "network."
        self.with_adapters(Adapters(lora_rank, ia3, prefix_length))

    def with_adapters(self, adapters: Adapters) -> Self:
        """Add ``adapters`` to this model, if any, and return it; raise ConfigError as ``add_adapters``."""
        if adapters.settings:
            self.prefix = add_adapters(self.network, adapters)
            self.settings = {**self.settings, **adapters.settings}
            self.unsaved_prefix = ""
        return self

    @property
    def architecture(self) -> str:
        """The Hugging Face model type: ``bert``, ``roberta`` ..."""
        return str(self.settings["config"]["model_type"])

    @property
    def has_segments(self) -> bool:
        """Whether the network distinguishes the tokens of a text from those of its pair (``token_type_ids``)."""
        return "token_type_ids" in self._arguments and getattr(self.network.config, "type_vocab_size", 2) > 1

    @property
    def from_scratch(self) -> bool:
        """Whether the model has hashed word pieces, for which there are no pretrained weights."""
        return self.settings["tokenizer"] is None

    @property
    def text_encoding(self) -> Mapping[str, Any]:
        """See ``TextModel``."""
        return self.tokens.specification

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None) -> Encoded:
        """``input_ids`` and, for pairs, ``segments``: int64 ``[n, length]``, 0 for padding."""
        return as_tensors(self.tokens.encode(texts, pairs))

    def forward(self, batch: Encoded, hidden: bool = False) -> Outputs:
        """Classify a batch; hidden states are the embeddings and every layer's output."""
        ids = batch["input_ids"]
        used = ids > 0
        inputs: dict[str, Tensor] = {}
        if self.has_segments:
            segments = batch.get("segments")
            inputs["token_type_ids"] = torch.zeros_like(ids) if segments is None else (segments - 1).clamp_min(0)
        if self._per_example:
            inputs["position_ids"] = torch.arange(ids.shape[1], device=ids.device).repeat(ids.shape[0], 1)
            absent = (~used)[:, None, None, :]
            mask = absent.to(self.network.dtype) * torch.finfo(self.network.dtype).min
            inputs["attention_mask"] = mask if self.prefix is None else F.pad(mask, (self.prefix.length, 0))
        else:
            inputs["attention_mask"] = used.to(torch.int64)
        if self._pad_id:
            ids = torch.where(ids == 0, self._pad_id, torch.where(ids == self._pad_id, 0, ids))
        before = {} if self.prefix is None else self.prefix(ids)
        outputs = self.network(input_ids=ids, output_hidden_states=hidden, return_dict=True, **inputs, **before)
        return Outputs(outputs.logits, tuple(outputs.hidden_states), used) if hidden else Outputs(outputs.logits)


def network_of(factory: Any, config: Mapping[str, Any], **changes: Any) -> PreTrainedModel:
    """Build the network of a configuration from any source with ``factory``, one of the Auto classes of transformers.

    Configurations with custom code are rejected, as transformers would prompt on the terminal before running it.
    """
    if _names_code(config):
        raise ConfigError("a configuration with auto_map has custom code, which is never run: remove auto_map")
    # The names of classes are the task's; a configuration may have any number of others.
    options = {key: value for key, value in config.items() if key not in ("model_type", "id2label", "label2id")}
    described = AutoConfig.for_model(config["model_type"], **{**options, **changes})
    with quiet():
        network = factory.from_config(described, attn_implementation="eager", trust_remote_code=False)
        return cast(PreTrainedModel, network)


def positions_of(network: PreTrainedModel) -> int | None:
    """Return the maximum number of tokens that a network has positions for; None if it has no maximum.

    RoBERTa and its relatives number positions from the padding id + 1 on, and their tables have a padding row.
    """
    positions = getattr(network.config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions <= 0:
        return None
    tables = [module for name, module in network.named_modules() if name.endswith(".position_embeddings")]
    paddings = [getattr(table, "padding_idx", None) for table in tables]
    return positions - max((padding + 1 for padding in paddings if padding is not None), default=0)


def _names_code(config: Any) -> bool:
    if isinstance(config, Mapping):
        return "auto_map" in config or any(map(_names_code, config.values()))
    return isinstance(config, list | tuple) and any(map(_names_code, config))
