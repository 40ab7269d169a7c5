"""The texts of a dataset that are public on a marketplace, for ``data.proxy_from = "catalogue"``."""

import re
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self, runtime_checkable

import numpy as np

from fed_distill.data.dataset import IntArray, Source
from fed_distill.text.hashing import normalize


def comparable(text: str) -> str:
    """Return the words of a text, which are equal for texts that differ in case, form of letters and punctuation."""
    normal = normalize(text)
    return " ".join(re.findall(r"\w+", normal)) or normal


@dataclass(frozen=True)
class Texts:
    """Distinct texts of one role, sorted, so that no draw depends on the order of merchants or rows.

    rows: int64 ``[texts]``, a row of the source that has the text, or -1 if there is none.
    """

    values: tuple[str, ...]
    rows: IntArray

    @classmethod
    def of_rows(cls, texts: Sequence[str], rows: IntArray, excluded: AbstractSet[str] = frozenset()) -> Self:
        """Return the distinct ``texts`` of ``rows`` except those in ``excluded``, each with its first row."""
        first: dict[str, int] = {}
        for row in np.sort(rows).tolist():
            first.setdefault(texts[row], row)
        return cls._of(first, set(first) - excluded)

    @classmethod
    def of_file(cls, values: Iterable[str], texts: Sequence[str], rows: IntArray, excluded: AbstractSet[str]) -> Self:
        """Return the distinct ``values`` of a catalogue file, with the first of ``rows`` that has the text.

        :param values: texts of the file
        :param texts: text of each row of the source
        :param rows: training rows of all participants
        :param excluded: texts that are left out, from ``comparable``
        """
        known = cls.of_rows(texts, rows)
        first = dict(zip(known.values, known.rows.tolist(), strict=True))
        return cls._of(first, {value for value in values if comparable(value) not in excluded})

    @classmethod
    def _of(cls, first: dict[str, int], chosen: AbstractSet[str]) -> Self:
        values = tuple(sorted(chosen))
        return cls(values, np.fromiter((first.get(text, -1) for text in values), dtype=np.int64, count=len(values)))


@dataclass(frozen=True)
class PublicTexts:
    """Public texts by role.

    texts: first texts, such as queries; None if these are histories of clicks, which are private. pairs: second texts,
    or None for tasks with one text. file: the server's own catalogue file, if the texts are from one.
    """

    texts: Texts | None
    pairs: Texts | None
    file: Path | str | None = None


@runtime_checkable
class HasPublicTexts(Source, Protocol):
    """A source that can say which of its texts are public."""

    def public_texts(self, rows: IntArray, held_out: IntArray) -> PublicTexts:
        """Return the public texts of all merchants' training products.

        :param rows: training rows of all merchants
        :param held_out: rows of validation and test, whose products must not occur
        :raises ConfigError: the texts were not declared public
        """
        ...

    def true_classes(self, rows: IntArray, text_rows: IntArray, pair_rows: IntArray | None) -> IntArray:
        """Return the true class of each example, int64 ``[n]``, `UNLABELED` where unknown.

        Only `FederatedData.proxy_truth` holds it, which is for a control of simulations.

        :param rows: rows whose labels may be used
        :param text_rows: row that has the first text of each example ``[n]``, or -1
        :param pair_rows: row that has the second text ``[n]``, or -1; None for tasks with one text
        """
        ...
