"""What a student is compared with beside the teacher's labels: hidden states, activation maps, relations, margins.

An objective must see one example at a time and only what a model puts out. So the student is wrapped for the training:
``FeatureStudent`` puts out what each kind of transfer reads of it, through learned projections where widths differ, and
of pairs of examples as if they were one. Both are gone when the training is over.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fed_distill.config import Transfer
from fed_distill.errors import ConfigError
from fed_distill.models.base import Outputs, TextModel
from fed_distill.models.weights import Weights
from fed_distill.text.encoded import Encoded

POSITIONS = 16
"""Equal parts of a text that activation maps are compared on: teacher and student cut texts into other tokens."""

PAIRED: tuple[Transfer, ...] = ("relations", "ranking", "listwise")
"""Kinds of transfer that compare an example with fixed partners: one, or the others of a list."""

LIST = 4
"""Candidates of a list, the example's own included."""

READ: tuple[Transfer, ...] = ("hints", "hidden", "attention", *PAIRED)
"""Kinds of transfer that need more of a student than its logits."""

_OWN = "student."
_PROBE = "one two three four five six"


@dataclass(frozen=True)
class Layers:
    """A model's layers on a batch, its embeddings left out.

    states: of each layer ``[batch, length, width]``. used: bool ``[batch, length]``, positions that are not padding.
    """

    states: tuple[Tensor, ...]
    used: Tensor

    @classmethod
    def of(cls, outputs: Outputs) -> "Layers":
        """The layers behind ``outputs``, which were asked for with ``hidden=True``; ConfigError if there are none."""
        if not outputs.hidden:
            raise ConfigError("a model without hidden states has none to compare: its forward must give `hidden`")
        states = outputs.hidden[1:] or outputs.hidden
        used = outputs.used
        return cls(states, states[-1].new_ones(states[-1].shape[:2], dtype=torch.bool) if used is None else used)

    @property
    def means(self) -> tuple[Tensor, ...]:
        """Mean state of each layer over the used positions, ``[batch, width]``."""
        weight = self.used / self.used.sum(dim=1, keepdim=True).clamp_min(1)
        return tuple(torch.einsum("bl,blw->bw", weight.to(states.dtype), states) for states in self.states)

    @property
    def maps(self) -> Tensor:
        """Activation map of each layer, the sum of squares over the width at each position (attention transfer,
        Zagoruyko and Komodakis 2017, sec. 3.1, F^2_sum), on ``POSITIONS`` parts: ``[batch, layers, POSITIONS]``."""
        return torch.stack([resampled(states.square().sum(dim=-1), self.used) for states in self.states], dim=1)


def resampled(values: Tensor, used: Tensor, positions: int = POSITIONS) -> Tensor:
    """``values`` ``[batch, length]`` of the used positions (a row's first ones), summed over ``positions`` equal parts
    of the text, ``[batch, positions]``; a position on an edge counts for both parts by its share."""
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
    """For each of the ``student``'s layers the one of the ``teacher``'s that it is compared with, 0-based: spread
    evenly, last with last (TinyBERT's uniform map g(m) = m * N / M, Jiao et al. 2020)."""
    return [max(1, (layer * teacher + student // 2) // student) - 1 for layer in range(1, student + 1)]


def guided_layer(student: int) -> int:
    """The layer that hints guide, 0-based: the middle one (FitNets, Romero et al. 2015, sec. 3.1)."""
    return (student - 1) // 2


def expected_gain(probabilities: Tensor, gains: Sequence[float]) -> Tensor:
    """Score ``[batch]`` by which candidates are ranked, of class probabilities ``[batch, classes]``."""
    return probabilities @ torch.tensor(gains, dtype=probabilities.dtype, device=probabilities.device)


class FeatureStudent(TextModel):
    """A student for the time of its distillation. Its ``Outputs.hidden`` are not hidden states, but of each of
    ``kinds`` what is compared with the teacher's:

    hints ``[batch, 1, width]``, the guided layer's mean state, projected to the teacher's width; hidden ``[batch,
    layers, width]``, all layers' so; attention ``[batch, layers, POSITIONS]``, all layers' maps; relations
    ``[batch, 1, 1]``, cosine of an example's and its partner's last state; ranking ``[batch, 1, 1]``, how much higher
    than its partner it scores; listwise ``[batch, 1, LIST]``, the scores of it and its partners.

    Partners are fields of an example too, by the name of their kind and their number. An example without any is its own
    partner.
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
        """student: shared, not copied. pair: whether examples have a second text. width: of the teacher's states.

        gains: of the classes, for ranking and listwise. partners: by paired kind, the rows of the proxy set that each
        proxy example is compared with, int64 ``[proxy, partners]``. Projections are drawn from torch's global state
        (see ``seeds.scope``).
        """
        super().__init__()
        self.student, self.kinds, self.gains, self.partners = student, tuple(kinds), tuple(gains), partners or {}
        self.beside = [beside for kind in kinds if kind in PAIRED for beside in _partners_of(kind)]
        self.tables = {
            _OWN + table: (*fields, *(f"{beside}.{field}" for beside in self.beside for field in fields))
            for table, fields in student.tables.items()
        }
        states = _probed(student, pair).states
        if "attention" in kinds and states[-1].shape[1] == 1:
            raise ConfigError(
                f"distill.transfer: attention compares the positions of a text, and {student.kind} has one vector for "
                "all of it: drop it, or take a student such as lstm or bert-mini"
            )
        widths = [one.shape[-1] for one in states]
        self.layers = len(widths)
        guided = widths[guided_layer(self.layers)]
        self.hint = nn.Linear(guided, width) if "hints" in kinds else None
        self.projections = nn.ModuleList(nn.Linear(own, width) for own in widths if "hidden" in kinds)

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None) -> Encoded:
        """As the student does."""
        return self.student.encode(texts, pairs)

    def with_partners(self, encoded: Encoded) -> Encoded:
        """The ``encoded`` proxy set, each example with its partners beside it."""
        fields = {
            f"{beside}.{name}": values[rows]
            for kind, partners in self.partners.items()
            for beside, rows in zip(_partners_of(kind), partners.T, strict=True)
            for name, values in encoded.items()
        }
        return {**encoded, **fields}

    def collate(self, encoded: Encoded, index: Tensor) -> dict[str, Tensor]:
        """As the student does, of examples and partners alike."""
        batch = self.student.collate(_fields(encoded, None), index)
        for beside in self.beside:
            partners = _fields(encoded, beside)
            if partners:
                collated = self.student.collate(partners, index)
                batch |= {f"{beside}.{name}": values for name, values in collated.items()}
        return batch

    def forward(self, batch: Encoded, hidden: bool = False) -> Outputs:
        """Classify a batch and, with ``hidden``, read of it what is compared."""
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
        others: list[Outputs] = [
            self.student(_fields(batch, beside) or _fields(batch, None), hidden=True) for beside in _partners_of(kind)
        ]
        if kind == "relations":
            return torch.cosine_similarity(layers.means[-1], Layers.of(others[0]).means[-1]).view(-1, 1, 1)
        scores = torch.stack(
            [expected_gain(one.logits.softmax(dim=-1), self.gains) for one in (outputs, *others)], dim=1
        ).unsqueeze(1)
        return scores if kind == "listwise" else scores[..., :1] - scores[..., 1:]

    def wrapped(self, weights: Weights) -> dict[str, Tensor]:
        """The student's ``weights`` as this model's, with its projections as they were drawn."""
        drawn = {name: value for name, value in self.state_dict().items() if not name.startswith(_OWN)}
        return {**{_OWN + name: value for name, value in weights.items()}, **drawn}


def unwrapped(weights: Weights) -> dict[str, Tensor]:
    """The student's own of a ``FeatureStudent``'s weights."""
    return {name.removeprefix(_OWN): value for name, value in weights.items() if name.startswith(_OWN)}


def _partners_of(kind: Transfer) -> list[str]:
    """What the fields of the partners of a paired kind begin with: its name and their number."""
    return [f"{kind} {number}" for number in range(1, LIST if kind == "listwise" else 2)]


def _fields(encoded: Encoded, beside: str | None) -> dict[str, Tensor]:
    """The fields of the examples themselves, or of one of their partners, by the student's names."""
    if beside is None:
        return {name: values for name, values in encoded.items() if name.partition(" ")[0] not in PAIRED}
    start = f"{beside}."
    return {name.removeprefix(start): values for name, values in encoded.items() if name.startswith(start)}


def _probed(student: TextModel, pair: bool) -> Layers:
    """The student's layers on a few words."""
    encoded = student.encode([_PROBE], [_PROBE] if pair else None)
    batch = student.collate(encoded, torch.zeros(1, dtype=torch.int64))
    training = student.training
    student.eval()
    try:
        with torch.no_grad():
            return Layers.of(student(batch, hidden=True))
    finally:
        student.train(training)
