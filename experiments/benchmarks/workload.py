"""The one workload that every contender trains: a cohort of merchants with encoded, labelled texts, kept in files.

Texts come from the generated marketplace, so that a merchant touches as many embedding rows as a real one. They are
encoded once and memory-mapped, so that no contender's time or memory has the making of data in it.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fed_distill import seeds
from fed_distill.data.examples import Task
from fed_distill.data.marketplace import Marketplace
from fed_distill.data.world import World, make_world
from fed_distill.errors import ConfigError
from fed_distill.models import TextModel, build_student
from fed_distill.text.encoded import Encoded

Weights = Mapping[str, Tensor]
"""A student's state dict."""

CLASSES = ("exact", "substitute", "complement", "irrelevant")
TOKEN_STUDENTS = ("bert-mini", "distilbert", "mobilebert", "lstm")
"""Students that read a sequence of tokens; the others read a pair of texts as they are."""

_OFFERS = 64
"""Offers of one generated assortment; a merchant has as many assortments as its examples need."""

_MIXED = 4
"""Assortments that a single text's further titles are drawn from: more words than one assortment repeats."""


@dataclass(frozen=True)
class Shop:
    """One merchant's examples: encoded fields ``[examples, ...]`` and int64 labels ``[examples]``."""

    encoded: Encoded
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: str) -> "Shop":
        """The same examples on a device."""
        return Shop({name: values.to(device) for name, values in self.encoded.items()}, self.labels.to(device))


@dataclass(frozen=True)
class Workload:
    """One federated round, by its sizes.

    merchants: how many train in a round. texts: examples of a merchant, on average. length: tokens of an example, for
    students that read tokens. uneven: sizes of a heavy tail with the same sum, instead of equal ones. Every merchant
    trains one epoch in batches of ``batch_size``, in the order in which its examples are stored, with a fresh AdamW
    at ``learning_rate``; then the weights are averaged by numbers of examples.
    """

    student: str = "bert-mini"
    merchants: int = 50
    texts: int = 64
    length: int = 32
    uneven: bool = False
    seed: int = 0
    batch_size: int = 16
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        for name in ("merchants", "texts", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"a benchmark needs {name} of at least 1, not {getattr(self, name)}")

    def sizes(self) -> list[int]:
        """Examples of each merchant, at least one each; they sum to ``merchants * texts``."""
        if not self.uneven:
            return [self.texts] * self.merchants
        draw = seeds.numpy_stream(self.seed, "benchmark sizes").lognormal(sigma=1.0, size=self.merchants)
        spare = self.merchants * (self.texts - 1)
        edges = np.round(np.cumsum(draw) / draw.sum() * spare).astype(np.int64)
        return [1 + int(size) for size in np.diff(edges, prepend=0)]

    def examples(self) -> int:
        """Examples in a round."""
        return self.merchants * self.texts

    def steps(self) -> int:
        """Optimizer steps in a round, all merchants together."""
        return sum(-(-size // self.batch_size) for size in self.sizes())

    def task(self) -> Task:
        """Four classes of a text pair, or of a single text for students that read tokens."""
        return Task("benchmark", CLASSES, pair=self.student not in TOKEN_STUDENTS, positive=CLASSES[0])

    def new_student(self) -> TextModel:
        """The student before the first round; always the same weights. Raise ConfigError for an unknown name."""
        options = {"max_length": self.length} if self.student in TOKEN_STUDENTS else {}
        with seeds.scope(self.seed, "benchmark student"):
            return build_student(self.student, options, self.task())

    def prepare(self, folder: Path) -> None:
        """Write the encoded examples of all merchants to ``folder``; the same workload gives the same bytes."""
        texts, pairs, labels = _examples(self)
        encoded = self.new_student().encode(texts, pairs)
        if self.student in TOKEN_STUDENTS and not bool((encoded["input_ids"].ne(0).sum(dim=1) == self.length).all()):
            raise ConfigError(f"some generated texts have fewer than {self.length} tokens: lower length")
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "labels.npy", labels)
        for name, values in encoded.items():
            np.save(folder / f"field.{name}.npy", values.numpy())
        (folder / "workload.json").write_text(json.dumps(asdict(self)), encoding="utf-8")


@dataclass(frozen=True)
class Cohort:
    """A workload with its merchants' examples, memory-mapped from ``folder``."""

    workload: Workload
    shops: tuple[Shop, ...]
    folder: Path

    @classmethod
    def open(cls, folder: Path) -> "Cohort":
        """Open what ``Workload.prepare`` wrote."""
        workload = Workload(**json.loads((folder / "workload.json").read_text(encoding="utf-8")))
        fields = {path.name.split(".")[1]: _mapped(path) for path in sorted(folder.glob("field.*.npy"))}
        labels = _mapped(folder / "labels.npy")
        edges = np.cumsum([0, *workload.sizes()]).tolist()
        return cls(
            workload,
            tuple(
                Shop({name: values[start:stop] for name, values in fields.items()}, labels[start:stop])
                for start, stop in pairwise(edges)
            ),
            folder,
        )

    def mean_loss(self, weights: Weights, shops: int = 16) -> float:
        """Mean cross-entropy over the examples of the first ``shops`` merchants: proof that a contender trained."""
        student = self.workload.new_student().eval()
        student.load_state_dict({name: value.cpu() for name, value in weights.items()})
        total, count = 0.0, 0
        with torch.inference_mode():
            for shop in self.shops[:shops]:
                for index in torch.split(torch.arange(len(shop)), 256):
                    logits = student(student.collate(shop.encoded, index)).logits
                    total += float(F.cross_entropy(logits, shop.labels[index], reduction="sum"))
                    count += len(index)
        return total / count


def freeze_embeddings(student: nn.Module) -> None:
    """Hold every embedding table fixed, as is usual for transformers under DP."""
    for module in student.modules():
        if isinstance(module, nn.Embedding):
            module.weight.requires_grad_(False)


def _mapped(path: Path) -> Tensor:
    return torch.from_numpy(np.load(path, mmap_mode="c"))


def _examples(workload: Workload) -> tuple[list[str], list[str] | None, npt.NDArray[np.int64]]:
    """Texts, pairs and labels of all merchants, one after another.

    Half of the pairs join a title with its own query, half with that of another offer of the assortment; the label
    says how near the two products are. A single text is a title with the offers that follow it, cut by the student;
    its label is the title's department, modulo the number of classes.
    """
    count = workload.examples()
    world = make_world(10_000, workload.seed)
    assortments = max(2, -(-count // _OFFERS))
    offers = Marketplace(merchants=assortments, rows=_OFFERS, size_spread=0.0, world_seed=workload.seed).offers(world)
    draw = seeds.numpy_stream(workload.seed, "benchmark pairs")
    at = np.concatenate([draw.permutation(_OFFERS) + first for first in range(0, assortments * _OFFERS, _OFFERS)])
    at = at[:count]
    if workload.student in TOKEN_STUDENTS:
        near = draw.integers(_OFFERS * _MIXED, size=(count, workload.length)) + at[:, None]
        near[:, 0] = at
        joined = [
            _words((offers.titles[i % len(offers.titles)] for i in row), 2 * workload.length) for row in near.tolist()
        ]
        return joined, None, world.department_of[offers.products[at]] % len(CLASSES)
    other = at - at % _OFFERS + draw.integers(_OFFERS, size=count)
    queried = np.where(draw.random(count) < 0.5, at, other)
    labels = _grades(world, offers.products[queried], offers.products[at])
    return [offers.queries[i] for i in queried], [offers.titles[i] for i in at], labels


def _words(texts: Iterator[str], least: int) -> str:
    words: list[str] = []
    while len(words) < least:
        words += next(texts).split()
    return " ".join(words)


def _grades(world: World, first: npt.NDArray[np.int64], second: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """0 for the same product, 1 for the same type, 2 for the same department, else 3."""
    grades = [
        first == second,
        world.type_of[first] == world.type_of[second],
        world.department_of[first] == world.department_of[second],
    ]
    return np.select(grades, [0, 1, 2], default=3).astype(np.int64)
