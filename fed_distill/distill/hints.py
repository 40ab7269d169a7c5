"""Feature-based distillation: hidden states, activation maps, relations, scores and embeddings of teacher and student.

An objective processes one example at a time and sees model outputs only. During training the student is therefore
wrapped in a ``FeatureStudent``, which returns the features for each kind of transfer, with learned projections where
widths differ, and handles an example and its partners as one example. The wrapper and projections are discarded
afterwards.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fed_distill.config import Transfer
from fed_distill.data.examples import Examples
from fed_distill.distill.losses import graded_log_odds
from fed_distill.errors import ConfigError
from fed_distill.models.base import Outputs, TextModel
from fed_distill.models.weights import Weights
from fed_distill.text.encoded import Encoded

POSITIONS = 16
"""Number of segments of a text in activation maps: teacher and student have different tokenizers."""

PARTNERS: Mapping[Transfer, int] = {"relations": 1, "ranking": 1, "listwise": 3, "contrastive": 4}
"""Number of fixed partners of an example for each kind of transfer that compares it with others."""

READ: tuple[Transfer, ...] = ("hints", "hidden", "attention", "embeddings", *PARTNERS)
"""Kinds of transfer that require more than logits."""

_OWN = "student."
_PROBE = "one two three four five six"


@dataclass(frozen=True)
class Layers:
    """Hidden states of a batch, without embeddings.

    states: ``[batch, length, width]`` per layer. used: bool ``[batch, length]``, positions without padding.
    """

    states: tuple[Tensor, ...]
    used: Tensor

    @classmethod
    def of(cls, outputs: Outputs) -> "Layers":
        """Return the layers of ``outputs`` (computed with ``hidden=True``); raise ConfigError if there are none."""
        if not outputs.hidden:
            raise ConfigError("the model has no hidden states: its forward must return `hidden`")
        states = outputs.hidden[1:] or outputs.hidden
        used = outputs.used
        return cls(states, states[-1].new_ones(states[-1].shape[:2], dtype=torch.bool) if used is None else used)

    @property
    def means(self) -> tuple[Tensor, ...]:
        """Return the mean state of each layer over the used positions, ``[batch, width]``."""
        weight = self.used / self.used.sum(dim=1, keepdim=True).clamp_min(1)
        return tuple(torch.einsum("bl,blw->bw", weight.to(states.dtype), states) for states in self.states)

    @property
    def maps(self) -> Tensor:
        """Return the activation maps ``[batch, layers, POSITIONS]``: the sum of squares over the width at each position
        (attention transfer, Zagoruyko and Komodakis 2017, section 3.1, F^2_sum), resampled."""
        return torch.stack([resampled(states.square().sum(dim=-1), self.used) for states in self.states], dim=1)


def resampled(values: Tensor, used: Tensor, positions: int = POSITIONS) -> Tensor:
    """Resample values of used positions to equal segments of the text.

    :param values: ``[batch, length]``; used positions come first
    :param used: bool ``[batch, length]``
    :param positions: number of segments; a position at an edge is divided between both
    :returns: sums ``[batch, positions]``
    """
    count = used.sum(dim=1).clamp_min(1)
    step = count / positions
    edges = torch.arange(positions, device=values.device) * step[:, None]
    start = torch.arange(values.shape[1], device=values.device)
    overlap = torch.minimum(edges[:, :, None] + step[:, None, None], start + 1.0) - torch.maximum(
        edges[:, :, None], start.to(step.dtype)
    )
    share = overlap.clamp_min(0.0) * used[:, None, :]
    return torch.einsum("bpl,bl->bp", share.to(values.dtype), values)


def layer_map(student: int, teacher: int) -> list[int]:
    """Return the 0-based teacher layer for each student layer: evenly spaced, last to last (the uniform map
    g(m) = m * N / M of TinyBERT, Jiao et al. 2020)."""
    return [max(1, (layer * teacher + student // 2) // student) - 1 for layer in range(1, student + 1)]


def guided_layer(student: int) -> int:
    """Return the 0-based guided layer: the middle one (FitNets, Romero et al. 2015, section 3.1)."""
    return (student - 1) // 2


class FeatureStudent(TextModel):
    """Wraps a student during distillation; its ``Outputs.hidden`` has one entry for each of ``kinds``.

    hints ``[batch, 1, width]``: mean state of the guided layer, projected to the teacher's width. hidden ``[batch,
    layers, width]``: those of all layers. attention ``[batch, layers, POSITIONS]``: activation maps of all layers.
    embeddings ``[batch, texts, width]``: vectors of the texts, projected to the teacher's width. relations ``[batch, 1,
    1]``: cosine of the last states of an example and its partner. ranking ``[batch, 1, 1]``: difference of their scores
    (``graded_log_odds``). listwise, contrastive ``[batch, 1, 1 + partners]``: scores of the example and its partners.

    Partners are stored as additional fields of an example, named by kind and number: other examples of the proxy set,
    or for contrastive the example's first text with other second texts. An example without partners is its own partner.
    """

    def __init__(
        self,
        student: TextModel,
        kinds: Sequence[Transfer],
        pair: bool,
        width: int,
        gains: Sequence[float] = (),
        partners: Mapping[Transfer, Tensor] | None = None,
    ) -> None:
        """Wrap a student.

        Projections are initialised from torch's global random state (see ``seeds.scope``).

        :param student: shared, not copied
        :param kinds: kinds of transfer
        :param pair: whether examples have a second text
        :param width: width of the teacher's states
        :param gains: gains of the classes, for ranking, listwise and contrastive
        :param partners: for each kind in ``PARTNERS``, rows of the partners of each proxy example, int64 ``[proxy,
            partners]``
        """
        super().__init__()
        self.student, self.kinds, self.gains, self.partners = student, tuple(kinds), tuple(gains), partners or {}
        self.beside = [beside for kind in kinds for beside in _partners_of(kind)]
        self.tables = {
            _OWN + table: (*fields, *(f"{beside}.{field}" for beside in self.beside for field in fields))
            for table, fields in student.tables.items()
        }
        probed = _probed(student, pair)
        states = Layers.of(probed).states
        if "attention" in kinds and states[-1].shape[1] == 1:
            raise ConfigError(
                f"distill.transfer: attention requires states per position, and {student.kind} has one vector per "
                "text: remove it, or choose a student such as lstm or bert-mini"
            )
        if "embeddings" in kinds and not student.towers:
            raise ConfigError(
                f"distill.transfer: embeddings requires a vector of each text, and {student.kind} processes both texts "
                "together: remove it, or choose a student such as two-tower"
            )
        widths = [one.shape[-1] for one in states]
        self.layers = len(widths)
        guided = widths[guided_layer(self.layers)]
        self.hint = nn.Linear(guided, width) if "hints" in kinds else None
        self.projections = nn.ModuleList(nn.Linear(own, width) for own in widths if "hidden" in kinds)
        self.texts = 2 if pair else 1
        own = _text_vectors(probed, self.texts).shape[-1] if "embeddings" in kinds else 0
        self.embedding = nn.Linear(own, width) if own else None

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None) -> Encoded:
        """Encode as the student does."""
        return self.student.encode(texts, pairs)

    def with_partners(self, encoded: Encoded, proxy: Examples) -> Encoded:
        """Add the fields of its partners to each example of the ``encoded`` proxy set."""
        fields = dict(encoded)
        for kind, partners in self.partners.items():
            for beside, rows in zip(_partners_of(kind), partners.T, strict=True):
                fields |= {f"{beside}.{name}": values for name, values in self._partner(kind, encoded, proxy, rows)}
        return fields

    def _partner(self, kind: Transfer, encoded: Encoded, proxy: Examples, rows: Tensor) -> Iterable[tuple[str, Tensor]]:
        """Return the fields of one partner of each proxy example; ``rows`` as in ``partners``, int64 ``[proxy]``."""
        if kind == "contrastive":
            assert proxy.pairs is not None
            return self.student.encode(proxy.texts, [proxy.pairs[row] for row in rows.tolist()]).items()
        return [(name, values[rows]) for name, values in encoded.items()]

    def collate(self, encoded: Encoded, index: Tensor) -> dict[str, Tensor]:
        """Collate examples and partners as the student does."""
        batch = self.student.collate(_fields(encoded, None), index)
        for beside in self.beside:
            partners = _fields(encoded, beside)
            if partners:
                collated = self.student.collate(partners, index)
                batch |= {f"{beside}.{name}": values for name, values in collated.items()}
        return batch

    def forward(self, batch: Encoded, hidden: bool = False) -> Outputs:
        """Classify a batch; with ``hidden``, also return the features of each kind."""
        own = _fields(batch, None)
        outputs: Outputs = self.student(own, hidden=hidden)
        if not hidden:
            return outputs
        layers = Layers.of(outputs)
        return Outputs(outputs.logits, tuple(self._read(kind, outputs, layers, batch) for kind in self.kinds))

    def _read(self, kind: Transfer, outputs: Outputs, layers: Layers, batch: Encoded) -> Tensor:
        if kind == "attention":
            return layers.maps
        if kind == "hidden":
            states = zip(self.projections, layers.means, strict=True)
            return torch.stack([projection(state) for projection, state in states], dim=1)
        if kind == "hints":
            assert self.hint is not None
            return torch.stack([self.hint(layers.means[guided_layer(self.layers)])], dim=1)
        if kind == "embeddings":
            assert self.embedding is not None
            vectors: Tensor = self.embedding(_text_vectors(outputs, self.texts))
            return vectors
        others: list[Outputs] = [
            self.student(_fields(batch, beside) or _fields(batch, None), hidden=True) for beside in _partners_of(kind)
        ]
        if kind == "relations":
            return torch.cosine_similarity(layers.means[-1], Layers.of(others[0]).means[-1]).view(-1, 1, 1)
        scores = torch.stack([graded_log_odds(one.logits, self.gains) for one in (outputs, *others)], dim=1)
        return (scores[:, :1] - scores[:, 1:] if kind == "ranking" else scores).unsqueeze(1)

    def wrapped(self, weights: Weights) -> dict[str, Tensor]:
        """Convert the student's ``weights`` to this model's, with its initial projections."""
        drawn = {name: value for name, value in self.state_dict().items() if not name.startswith(_OWN)}
        return {**{_OWN + name: value for name, value in weights.items()}, **drawn}


def unwrapped(weights: Weights) -> dict[str, Tensor]:
    """Extract the student's weights from those of a ``FeatureStudent``."""
    return {name.removeprefix(_OWN): value for name, value in weights.items() if name.startswith(_OWN)}


def _partners_of(kind: Transfer) -> list[str]:
    """Return the prefixes of the partners' fields for a kind: its name and their number."""
    return [f"{kind} {number}" for number in range(1, PARTNERS.get(kind, 0) + 1)]


def _fields(encoded: Encoded, beside: str | None) -> dict[str, Tensor]:
    """Return the fields of the examples, or of one of their partners, under the student's names."""
    if beside is None:
        return {name: values for name, values in encoded.items() if name.partition(" ")[0] not in PARTNERS}
    start = f"{beside}."
    return {name.removeprefix(start): values for name, values in encoded.items() if name.startswith(start)}


def _text_vectors(outputs: Outputs, texts: int) -> Tensor:
    """Return the vectors ``[batch, texts, width]`` of a student with ``towers``."""
    assert outputs.hidden is not None
    beside = outputs.hidden[0]
    return beside.reshape(len(beside), texts, -1)


def _probed(student: TextModel, pair: bool) -> Outputs:
    """Return the student's outputs on a short example, with hidden states."""
    encoded = student.encode([_PROBE], [_PROBE] if pair else None)
    batch = student.collate(encoded, torch.zeros(1, dtype=torch.int64))
    training = student.training
    student.eval()
    try:
        with torch.no_grad():
            outputs: Outputs = student(batch, hidden=True)
            return outputs
    finally:
        student.train(training)
