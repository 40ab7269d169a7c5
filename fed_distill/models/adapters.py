"""Adapters of transformers, which merchants train instead of all weights; a student has one kind, from peft.

LoRA (Hu et al., ICLR 2022): low-rank updates beside queries and values. (IA)^3 (Liu et al., "Few-shot
parameter-efficient fine-tuning is better and cheaper than in-context learning", NeurIPS 2022, sec. 3.3): a factor for
each entry of keys, values and what flows between the two products of a feed-forward layer. A prefix (Li and Liang, ACL
2021; in encoders Liu et al., "P-tuning v2", ACL 2022): keys and values of positions that no text has, in every layer.
"""

import inspect
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from fed_distill.errors import ConfigError

PREFIX = "prefix"
"""Name of a student's module for its prefix."""
_FACTORS = "*.ia3_l.*"
_PATTERNS = ("*.lora_*", _FACTORS, f"{PREFIX}.*")

_LORA = {"bert": ("query", "value"), "distilbert": ("q_lin", "v_lin"), "mobilebert": ("query", "value")}
"""Layers that get low-rank updates, by architecture."""
_IA3 = {
    "bert": (r"self\.(key|value)", r"layer\.\d+\.output\.dense"),
    "distilbert": (r"attention\.(k|v)_lin", r"ffn\.lin2"),
    "mobilebert": (r"self\.(key|value)", r"layer\.\d+\.output\.dense"),
}
"""Suffixes of names of layers with factors on outputs, and with factors on inputs."""


@dataclass(frozen=True)
class Adapters:
    """A student's adapters: LoRA of a rank, (IA)^3 factors, a prefix of a length, or none."""

    lora_rank: int | None = None
    ia3: bool = False
    prefix_length: int | None = None

    def __post_init__(self) -> None:
        if len(self.settings) > 1:
            raise ConfigError(f"a student has one kind of adapters, not {' and '.join(self.settings)}: remove one")

    @property
    def settings(self) -> dict[str, Any]:
        """The fields that are set."""
        return {name: value for name, value in asdict(self).items() if value}


class Prefix(nn.Module):
    """Keys and values of positions before every text, for each layer of a BERT (peft's ``PrefixEncoder``)."""

    def __init__(self, length: int, network: PreTrainedModel) -> None:
        """length: number of positions. Their keys and values are initialised like the network's own weights."""
        super().__init__()
        from peft import PrefixEncoder, PrefixTuningConfig  # takes over a second to import

        config = network.config
        self.length, self.layers, self.heads = length, config.num_hidden_layers, config.num_attention_heads
        described = PrefixTuningConfig(
            num_virtual_tokens=length,
            token_dim=config.hidden_size,
            num_layers=self.layers,
            num_attention_heads=self.heads,
            num_transformer_submodules=1,
        )
        make: Any = PrefixEncoder  # untyped in peft
        self.encoder = make(described)
        nn.init.normal_(self.encoder.embedding.weight, std=config.initializer_range)
        arguments = inspect.signature(network.base_model.forward).parameters
        self.argument = "cache" if "cache" in arguments else "past_key_values"
        """The network's argument for keys and values before those of a text."""

    def forward(self, ids: Tensor) -> dict[str, DynamicCache]:
        """Return the network's additional arguments for the examples ``ids`` ``[batch, length]``.

        The prefix is looked up for each example separately, so that per-example gradients exist."""
        positions = torch.arange(self.length, device=ids.device).repeat(len(ids), 1)
        found: Tensor = self.encoder(positions)
        parts = found.view(len(ids), self.length, 2 * self.layers, self.heads, -1).permute(2, 0, 3, 1, 4)
        pairs = [(parts[2 * layer], parts[2 * layer + 1]) for layer in range(self.layers)]
        return {self.argument: DynamicCache(pairs)}


def add_adapters(network: PreTrainedModel, adapters: Adapters) -> Prefix | None:
    """Add ``adapters`` to ``network``; return a prefix, which must be passed to its calls. All weights remain
    trainable; ``freezing`` decides on them.

    Initially LoRA and factors do not change the outputs.

    :raises ConfigError: peft is not installed, or a prefix is for another architecture than BERT
    """
    option, architecture = next(iter(adapters.settings)), network.config.model_type
    if find_spec("peft") is None:
        raise ConfigError(f"option {option} requires the package peft: pip install 'fed-distill[lora]'")
    if adapters.prefix_length:
        if architecture != "bert":
            raise ConfigError(f"option prefix_length requires a BERT: the attention of {architecture} has no prefix")
        return Prefix(adapters.prefix_length, network)
    from peft import IA3Config, LoraConfig, inject_adapter_in_model  # takes over a second to import

    config: Any
    if adapters.lora_rank:
        rank = adapters.lora_rank
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=[*_LORA[architecture]])
    else:
        outputs, inputs = (f".*{ending}" for ending in _IA3[architecture])
        config = IA3Config(target_modules=f"{outputs}|{inputs}", feedforward_modules=inputs)
    inject_adapter_in_model(config, network)
    network.requires_grad_(True)
    return None


def is_adapter(name: str) -> bool:
    """Whether the weight ``name`` of a student belongs to an adapter."""
    return any(fnmatchcase(name, pattern) for pattern in _PATTERNS)


def check_per_example(student: nn.Module) -> None:
    """Raise ConfigError unless per-example gradients of the student's adapters can be computed."""
    if any(fnmatchcase(name, _FACTORS) for name, _ in student.named_parameters()):
        raise ConfigError(
            "privacy.unit = 'example' requires per-example gradients, which cannot be computed for the factors of "
            "student option ia3: use lora_rank or prefix_length"
        )
