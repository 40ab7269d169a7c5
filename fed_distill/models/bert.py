"""The BERT family by size: from scratch over hashed word pieces, cut from the teacher, or pretrained in a folder.

From scratch they have no vocabulary, so that a merchant can rebuild them from settings and weights.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field

from fed_distill.errors import ConfigError
from fed_distill.models.adapters import Adapters
from fed_distill.models.base import TextModel
from fed_distill.models.pretrained import cut, pretrained
from fed_distill.models.transformer import Transformer
from fed_distill.text.tokens import LONGEST, SHORTEST
from fed_distill.text.wordpiece import Vocabulary

Size = Annotated[int, Field(ge=1)]
Rows = Annotated[int, Field(ge=16)]
Length = Annotated[int, Field(ge=SHORTEST, le=LONGEST)]
Share = Annotated[float, Field(ge=0.0, lt=1.0)]


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
    """Build a teacher from scratch, without pretrained weights: BERT over hashed word pieces."""
    return _from_scratch("bert", classes, pair, max_length, layers, width, heads, rows, dropout)


def bert_mini(
    classes: int,
    pair: bool,
    teacher: TextModel | None,
    texts: Sequence[str] | None,
    *,
    layers: Size = 2,
    width: Size | None = None,
    heads: Size | None = None,
    rows: Rows | None = None,
    dropout: Share | None = None,
    max_length: Length = 64,
    from_teacher: bool = False,
    path: str | None = None,
    vocabulary: Vocabulary = "all",
    lora_rank: Size | None = None,
    ia3: bool = False,
    prefix_length: Size | None = None,
) -> Transformer:
    """BERT of ``layers`` layers: from scratch (width 128, heads 2, rows 8,192, dropout 0), with ``from_teacher``
    cut from the teacher's evenly spaced layers, or with ``path`` cut from a pretrained BERT's. A BERT that was cut
    has ``vocabulary`` of the tokens: all, ``"catalogue"`` or a number (see ``text.wordpiece``).

    With adapters, merchants train only these and the head: low-rank updates of ``lora_rank``, the factors
    of ``ia3``, or a prefix of ``prefix_length`` positions (see ``models.adapters``)."""
    adapters = Adapters(lora_rank, ia3, prefix_length)
    sizes = {"width": width, "heads": heads, "rows": rows, "dropout": dropout}
    if not from_teacher and path is None:
        if vocabulary != "all":
            raise ConfigError("student 'bert-mini' from scratch has no vocabulary: remove vocabulary, or set rows")
        scratch = _from_scratch("bert", classes, pair, max_length, layers, **_with_defaults(sizes))
        return scratch.with_adapters(adapters)
    _refuse_sizes("bert-mini", sizes, "from_teacher" if from_teacher else "path")
    if from_teacher and path is not None:
        raise ConfigError("student 'bert-mini' has from_teacher and path: remove one")
    source = teacher if path is None else pretrained(classes, pair, max_length, path, download=None)
    if not isinstance(source, Transformer) or source.architecture != "bert":
        given = "no teacher was given" if source is None else f"it is a {type(source).__name__}"
        if isinstance(source, Transformer):
            given = f"it is a {source.architecture}"
        raise ConfigError(f"student 'bert-mini' can only be cut from a BERT teacher (minilm, bert-small): {given}")
    student = cut(source, layers, max_length, vocabulary, texts).with_adapters(adapters)
    student.of_teacher = from_teacher
    return student


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
    lora_rank: Size | None = None,
    ia3: bool = False,
) -> Transformer:
    """DistilBERT: from scratch (layers 2, width 128, heads 2, rows 8,192, dropout 0) or pretrained in ``path``.

    ``lora_rank``, ``ia3``: as of bert-mini."""
    sizes = {"layers": layers, "width": width, "heads": heads, "rows": rows, "dropout": dropout}
    return _small("distilbert", classes, pair, max_length, sizes, path).with_adapters(Adapters(lora_rank, ia3))


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
    lora_rank: Size | None = None,
    ia3: bool = False,
) -> Transformer:
    """MobileBERT: from scratch (layers 2, width 128, heads 2, rows 8,192, dropout 0) or pretrained in ``path``.

    From scratch it has layer norm instead of NoNorm, which is meant for weights transferred from a teacher
    (Sun et al. 2020, sec. 3.3). ``lora_rank``, ``ia3``: as of bert-mini.
    """
    sizes = {"layers": layers, "width": width, "heads": heads, "rows": rows, "dropout": dropout}
    return _small("mobilebert", classes, pair, max_length, sizes, path).with_adapters(Adapters(lora_rank, ia3))


def _small(
    architecture: str, classes: int, pair: bool, max_length: int, sizes: Mapping[str, Any], path: str | None
) -> Transformer:
    if path is None:
        return _from_scratch(architecture, classes, pair, max_length, **_with_defaults(sizes))
    _refuse_sizes(architecture, sizes, "path")
    model = pretrained(classes, pair, max_length, path, download=None)
    if model.architecture != architecture:
        raise ConfigError(f"student {architecture!r}, option path: {path} contains a {model.architecture}")
    return model


def _with_defaults(sizes: Mapping[str, Any]) -> dict[str, Any]:
    defaults = {"layers": 2, "width": 128, "heads": 2, "rows": 8192, "dropout": 0.0}
    return {name: defaults[name] if value is None else value for name, value in sizes.items()}


def _refuse_sizes(student: str, sizes: Mapping[str, Any], option: str) -> None:
    for name, value in sizes.items():
        if value is not None:
            raise ConfigError(
                f"student {student!r}: {name} is determined by the pretrained model: remove it, or remove {option}"
            )


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
