"""What merchants train of a transformer instead of all its weights: adapters of peft, of which a student has one kind.

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
"""Name of a student's part that makes its prefix."""
_FACTORS = "*.ia3_l.*"
_PATTERNS = ("*.lora_*", _FACTORS, f"{PREFIX}.*")

_LORA = {"bert": ("query", "value"), "distilbert": ("q_lin", "v_lin"), "mobilebert": ("query", "value")}
"""Layers that get low-rank updates, by architecture."""
_IA3 = {
    "bert": (r"self\.(key|value)", r"layer\.\d+\.output\.dense"),
    "distilbert": (r"attention\.(k|v)_lin", r"ffn\.lin2"),
    "mobilebert": (r"self\.(key|value)", r"layer\.\d+\.output\.dense"),
}
"""How names of layers end whose outputs, and whose inputs, get factors."""


@dataclass(frozen=True)
class Adapters:
    """Which adapters a student has, if any: LoRA of a rank, factors, or a prefix of so many positions."""

    lora_rank: int | None = None
    ia3: bool = False
    prefix_length: int | None = None

    def __post_init__(self) -> None:
        if len(self.settings) > 1:
            raise ConfigError(f"a student has one kind of adapters, not {' and '.join(self.settings)}: drop one")

    @property
    def settings(self) -> dict[str, Any]:
        """Those of its fields that ask for anything."""
        return {name: value for name, value in asdict(self).items() if value}


class Prefix(nn.Module):
    """Keys and values of positions before every text, for each layer of a BERT (peft's ``PrefixEncoder``)."""

    def __init__(self, length: int, network: PreTrainedModel) -> None:
        """length: positions. Their keys and values are drawn as the network's own weights were."""
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
        """What the network calls keys and values that are there before a text's own."""

    def forward(self, ids: Tensor) -> dict[str, DynamicCache]:
        """What the network gets beside the examples ``ids`` ``[batch, length]``.

        Each example looks its prefix up by itself, so that its gradient is known by itself too."""
        positions = torch.arange(self.length, device=ids.device).repeat(len(ids), 1)
        found: Tensor = self.encoder(positions)
        parts = found.view(len(ids), self.length, 2 * self.layers, self.heads, -1).permute(2, 0, 3, 1, 4)
        pairs = [(parts[2 * layer], parts[2 * layer + 1]) for layer in range(self.layers)]
        return {self.argument: DynamicCache(pairs)}


def add_adapters(network: PreTrainedModel, adapters: Adapters) -> Prefix | None:
    """Put ``adapters`` into ``network``; a prefix comes back, which is to be given to it. All weights stay trainable:
    who trains what is said by ``freezing``.

    LoRA and factors change nothing yet. Raise ConfigError without peft, or for a prefix of what is no BERT.
    """
    option, architecture = next(iter(adapters.settings)), network.config.model_type
    if find_spec("peft") is None:
        raise ConfigError(f"option {option} needs the package peft: pip install 'fed-distill[lora]'")
    if adapters.prefix_length:
        if architecture != "bert":
            raise ConfigError(f"option prefix_length is of BERT: the attention of {architecture} takes no prefix")
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
    """Whether a student's weight called ``name`` is an adapter's."""
    return any(fnmatchcase(name, pattern) for pattern in _PATTERNS)


def check_per_example(student: nn.Module) -> None:
    """ConfigError unless every example's gradient by the student's adapters can be told from the others'."""
    if any(fnmatchcase(name, _FACTORS) for name, _ in student.named_parameters()):
        raise ConfigError(
            "privacy.unit = 'example' bounds what each example does to a weight, and the factors of student option ia3 "
            "are used outside of layers that could tell: take lora_rank or prefix_length"
        )
