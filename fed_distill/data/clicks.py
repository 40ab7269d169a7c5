"""A source of click histories: recently clicked products, a candidate, and whether to recommend it.

Each shopper has a latent department, brand and colour preference. The label depends on it, on which types go together
(``World.affinity``, shared by all merchants) and on noise. Histories are drawn after the split, from one merchant's
offers in one part, so that no test product occurs in training.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from fed_distill.config import DataConfig
from fed_distill.data.cleaning import clean
from fed_distill.data.dataset import IntArray
from fed_distill.data.examples import UNLABELED, Examples, Ranking, Task
from fed_distill.data.labeled import factorize
from fed_distill.data.partition import assign
from fed_distill.data.public_texts import PublicTexts, Texts
from fed_distill.data.tasks import HISTORY_SEPARATOR, RECOMMEND
from fed_distill.data.world import World
from fed_distill.seeds import numpy_stream

_CLICKS = 4
"""Number of clicks in a history."""
_NOISE = 0.5
_ROUNDS = 20


@dataclass(frozen=True)
class Clicks:
    """Clean offers and their world; implements ``Source`` for recommend. Create it with `build`.

    products, colors: int64 ``[n]``. per_row: examples per offer. max_examples: maximum per merchant and part of the
    split.
    """

    names: tuple[str, ...]
    owners: IntArray
    groups: IntArray
    titles: tuple[str, ...]
    products: IntArray
    colors: IntArray
    world: World
    per_row: int
    max_examples: int
    account: Mapping[str, Any] = field(default_factory=dict)
    task: Task = RECOMMEND
    domains: tuple[str, ...] | None = None

    @classmethod
    def build(
        cls,
        titles: Sequence[str],
        merchants: Sequence[str],
        products: IntArray,
        colors: IntArray,
        world: World,
        config: DataConfig,
        per_row: int,
        max_examples: int,
        domains: Sequence[str] | None = None,
    ) -> Self:
        """Clean the offers and assign merchants; a partitioner skews the departments."""
        named = merchants if config.partition == "merchant" else None
        cleaned = clean(titles, None, None, named, config.max_characters)
        rows = np.asarray(cleaned.rows, dtype=np.int64)
        kept = products[rows]
        names, owners = assign(
            None if named is None else [named[row] for row in cleaned.rows], world.department_of[kept], config
        )
        return cls(
            names,
            owners,
            kept,
            cleaned.texts,
            kept,
            colors[rows],
            world,
            per_row,
            max_examples,
            cleaned.account,
            domains=None if domains is None else tuple(domains[row] for row in cleaned.rows),
        )

    def examples(self, rows: IntArray, merchant: str, part: str, seed: int) -> Examples:
        """Draw histories of the merchant's shoppers, each with a candidate product."""
        rate = numpy_stream(seed, "clicks", merchant).uniform(0.3, 0.6)
        return self._draw(
            rows,
            min(self.per_row * len(rows), self.max_examples),
            float(rate),
            numpy_stream(seed, "clicks", merchant, part),
        )

    def proxy(self, rows: IntArray, size: int, seed: int) -> Examples:
        """Draw further histories of the public merchants' shoppers."""
        if not len(rows):
            return self._draw(rows, 0, 0.5, numpy_stream(seed, "proxy"))
        rng = numpy_stream(seed, "proxy")
        owners = self.owners[rows]
        parts: list[Examples] = []
        keys: list[tuple[str, str]] = []
        for _ in range(_ROUNDS):
            for owner in np.unique(owners).tolist():
                own = rows[owners == owner]
                parts.append(self._draw(own, -(-size * len(own) // len(rows)), 0.5, rng))
                keys.extend(zip(parts[-1].texts, parts[-1].pairs or (), strict=True))
            if len(set(keys)) >= size:
                break
        first = np.sort(np.unique(factorize(keys), return_index=True)[1])
        return Examples.concatenate(parts).take(np.sort(rng.permutation(first)[:size]))

    def public_texts(self, rows: IntArray, held_out: IntArray) -> PublicTexts:
        """Return the titles of ``rows`` that no offer of ``held_out`` has; histories are private."""
        return PublicTexts(None, Texts.of_rows(self.titles, rows, {self.titles[row] for row in held_out}))

    def true_classes(self, rows: IntArray, text_rows: IntArray, pair_rows: IntArray | None) -> IntArray:
        """Return `UNLABELED`: only a shopper of one's own clicks."""
        return np.full(len(text_rows), UNLABELED, dtype=np.int64)

    def ranking(self, rows: IntArray, part: str, seed: int) -> Ranking | None:
        """Return None: recommend is measured by macro-F1."""
        return None

    def _draw(self, rows: IntArray, count: int, rate: float, rng: np.random.Generator) -> Examples:
        """Draw ``count`` examples from ``rows``; a share ``rate`` is positive."""
        if not len(rows):
            count = 0
        product, color = self.products[rows], self.colors[rows]
        department, brand = self.world.department_of[product], self.world.brand_of[product]
        clicked = np.zeros((count, _CLICKS), dtype=np.int64)
        shown = np.zeros(count, dtype=np.int64)
        for shopper in range(count):
            idea = rng.integers(len(rows))
            weights = np.cumsum(
                0.2
                + 6.0 * (department == department[idea]) * (1 + 3.0 * (brand == brand[idea]))
                + 2.0 * (color == color[idea])
            )
            drawn = np.searchsorted(weights, rng.random(_CLICKS + 1) * weights[-1], side="right").clip(
                max=len(rows) - 1
            )
            clicked[shopper] = drawn[:_CLICKS]
            shown[shopper] = drawn[_CLICKS] if rng.random() < 0.6 else rng.integers(len(rows))
        wish = self._wish(product, color, clicked, shown) + rng.logistic(scale=_NOISE / 2, size=count)
        labels = np.zeros(count, dtype=np.int64)
        labels[np.argsort(-wish, kind="stable")[: round(rate * count)]] = 1
        titles = [self.titles[row] for row in rows.tolist()]
        return Examples(
            texts=tuple(HISTORY_SEPARATOR.join(titles[at] for at in history) for history in clicked.tolist()),
            pairs=tuple(titles[at] for at in shown.tolist()),
            labels=labels,
            groups=product[shown],
            merchants=tuple(self.names[owner] for owner in self.owners[rows[shown]]),
        )

    def _wish(self, product: IntArray, color: IntArray, clicked: IntArray, shown: IntArray) -> npt.NDArray[np.float64]:
        """Return the preference of each shopper for its candidate, ``[examples]``."""
        kind, brand = self.world.type_of[product], self.world.brand_of[product]
        department = self.world.department_of[product]
        likes_type = self.world.affinity[kind[clicked], kind[shown][:, None]].mean(axis=1)
        likes_brand = (brand[clicked] == brand[shown][:, None]).mean(axis=1)
        likes_color = (color[clicked] == color[shown][:, None]).mean(axis=1)
        at_home = (department[clicked] == department[shown][:, None]).mean(axis=1)
        wish: npt.NDArray[np.float64] = likes_type + 2.0 * likes_brand + likes_color + 1.5 * at_home
        return wish
