"""The built-in synthetic marketplace: no download, any number of merchants, deterministic for given seeds.

Merchants differ in assortment, brands, language, writing habits, size (heavy-tailed) and shares of the grades. They
sell from one shared world, in which brands, types, models and units have several names; the public merchants, and so
the server, cover only some of them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from fed_distill.config import DataConfig
from fed_distill.data.campaigns import generated_campaigns
from fed_distill.data.catalogue import Catalogue, PairOptions
from fed_distill.data.clicks import Clicks
from fed_distill.data.dataset import IntArray, Source, of_random_splits
from fed_distill.data.examples import Task
from fed_distill.data.intents import INTENTS
from fed_distill.data.labeled import LabeledRows
from fed_distill.data.opinions import REVIEW_DRAWS, write_review
from fed_distill.data.tasks import SENTIMENT, category_task, choose_task
from fed_distill.data.vocabulary import COLORS, DEPARTMENTS, LANGUAGES
from fed_distill.data.world import World, make_world
from fed_distill.data.writing import QUESTION_DRAWS, Habits, draw_habits, write_query, write_question, write_title
from fed_distill.seeds import numpy_stream

FAQ = Task("faq", tuple(INTENTS), pair=False, positive="return")
"""Intent of a shopper's question."""

TASKS = ("relevance", "recommend", "category", "faq", "sentiment", "marketing-effect")
"""Tasks of the marketplace."""

Writer = Callable[[int, int, Habits, list[float]], str]
"""Writes a text about a product, given the product, a label, the merchant's habits and uniform numbers."""

_LARGEST = 15
"""Maximum size of a merchant, relative to the mean."""


@dataclass(frozen=True)
class Offers:
    """Offers of all merchants, as columns ``[offers]``."""

    titles: list[str]
    queries: list[str]
    merchants: list[str]
    products: IntArray
    colors: IntArray


@dataclass(frozen=True)
class Written:
    """Questions or reviews of all merchants' shoppers, as columns ``[texts]``. labels: indices into `INTENTS`, or the
    classes of `SENTIMENT`."""

    texts: list[str]
    merchants: list[str]
    products: IntArray
    labels: IntArray


@dataclass(frozen=True)
class Marketplace:
    """Synthetic merchants; tasks ``relevance``, ``recommend``, ``category`` (the department of a title), ``faq`` (the
    intent of a shopper's question), ``sentiment`` (whether a review is positive) and ``marketing-effect`` (whom a
    campaign makes buy; see ``data.campaigns``). The domain is the product's department.

    merchants: number of merchants. rows: mean number of offers, questions, reviews or customers per merchant. products:
    number of products in the world; 0 for 100 per merchant, at most 60,000. languages: languages of titles, queries and
    questions; each merchant has a main one. size_spread: standard deviation of the logarithm of the merchants' sizes.
    grade_skew: from 0 (same grades, intents or shares of praise at all merchants) to 1 (their shares vary widely
    between merchants). world_seed: seed of products, merchants and texts; None: ``data.seed``, so that each data seed
    is another marketplace. assignment: who is treated by a campaign: half of the customers at random, or mostly those
    who would buy without it. pairs_per_row: pairs (or, for recommend, candidates) per offer. max_pairs: maximum per
    merchant and part of the split. ranking_queries, ranking_candidates: size of the ranking view.
    """

    merchants: Annotated[int, Field(ge=2, le=100_000)] = 12
    rows: Annotated[int, Field(ge=2)] = 300
    products: Annotated[int, Field(ge=0)] = 0
    languages: tuple[Literal["en", "de", "zh"], ...] = ("en", "de", "zh")
    size_spread: Annotated[float, Field(ge=0.0, le=3.0)] = 0.9
    grade_skew: Annotated[float, Field(ge=0.0, le=1.0)] = 0.7
    world_seed: int | None = None
    assignment: Literal["random", "confounded"] = "random"
    pairs_per_row: Annotated[int, Field(ge=1)] = 3
    max_pairs: Annotated[int, Field(ge=1)] = 900
    ranking_queries: Annotated[int, Field(ge=1)] = 2000
    ranking_candidates: Annotated[int, Field(ge=2)] = 50

    def __post_init__(self) -> None:
        if not self.languages:
            raise ValueError("list at least one language")

    def test_to_train(self, config: DataConfig) -> float:
        """Return 0 if each data seed is another marketplace."""
        return 0.0 if self.world_seed is None else of_random_splits(config)

    def read(self, config: DataConfig) -> Source:
        """Generate the offers and the source for the task."""
        choose_task(config.task, "marketplace", TASKS)
        if self.world_seed is None:
            return replace(self, world_seed=config.seed).read(config)
        world = make_world(self.products or min(100 * self.merchants, 60_000), self.world_seed)
        departments = tuple(DEPARTMENTS)
        if config.task == "marketing-effect":
            languages = tuple(LANGUAGES.index(known) for known in self.languages)
            return generated_campaigns(
                world, self._merchants(), languages, self.assignment == "confounded", self.world_seed, config
            )
        if config.task in ("faq", "sentiment"):
            task, written = (FAQ, self.questions(world)) if config.task == "faq" else (SENTIMENT, self.reviews(world))
            return LabeledRows.build(
                task,
                written.texts,
                written.labels,
                config,
                merchants=written.merchants,
                domains=[departments[at] for at in world.department_of[written.products]],
                public_texts=True,
            )
        offers = self.offers(world)
        domains = [departments[at] for at in world.department_of[offers.products]]
        if config.task == "category":
            labels = world.department_of[offers.products]
            task = category_task(domains)
            index = np.array([task.classes.index(name) if name in task.classes else -1 for name in departments])
            return LabeledRows.build(
                task,
                offers.titles,
                index[labels],
                config,
                merchants=offers.merchants,
                groups=offers.products.tolist(),
                domains=domains,
                public_texts=True,
            )
        if config.task == "recommend":
            return Clicks.build(
                offers.titles,
                offers.merchants,
                offers.products,
                offers.colors,
                world,
                config,
                self.pairs_per_row,
                self.max_pairs,
                domains,
            )
        return Catalogue.build(
            offers.titles,
            offers.queries,
            offers.merchants,
            offers.products,
            world.type_of[offers.products],
            world.department_of[offers.products],
            config,
            PairOptions(
                self.pairs_per_row, self.max_pairs, self.ranking_queries, self.ranking_candidates, self.grade_skew
            ),
            domains=domains,
        )

    def offers(self, world: World) -> Offers:
        """Generate the offers of every merchant."""
        titles: list[str] = []
        queries: list[str] = []
        owners: list[str] = []
        products: list[IntArray] = []
        colors: list[IntArray] = []
        for name, language, size in self._merchants():
            rng = numpy_stream(self._seed, "offers", name)
            languages = tuple(LANGUAGES.index(known) for known in self.languages)
            habits = draw_habits(language, languages, rng)
            chosen = _assortment(world, size, rng)
            color = rng.integers(len(COLORS), size=size)
            draws = rng.random((size, 16)).tolist()
            for product, shade, draw in zip(chosen.tolist(), color.tolist(), draws, strict=True):
                titles.append(write_title(world, product, shade, habits, draw[:8]))
                queries.append(write_query(world, product, language, draw[8:]))
            owners.extend([name] * size)
            products.append(chosen)
            colors.append(color)
        return Offers(titles, queries, owners, np.concatenate(products), np.concatenate(colors))

    def questions(self, world: World) -> Written:
        """Generate the questions of every merchant's shoppers."""
        names = tuple(INTENTS)

        def write(product: int, intent: int, habits: Habits, draw: list[float]) -> str:
            return write_question(world, product, names[intent], habits, draw)

        return self._written(world, "questions", len(names), QUESTION_DRAWS, write)

    def reviews(self, world: World) -> Written:
        """Generate the reviews of every merchant's products."""
        positive = SENTIMENT.positive_index

        def write(product: int, label: int, habits: Habits, draw: list[float]) -> str:
            return write_review(world, product, label == positive, habits, draw)

        return self._written(world, "reviews", len(SENTIMENT.classes), REVIEW_DRAWS, write)

    def _written(
        self,
        world: World,
        kind: str,
        classes: int,
        draws_each: int,
        write: Callable[[int, int, Habits, list[float]], str],
    ) -> Written:
        """Generate texts about products of every merchant's assortment, with labels in the merchant's own shares.

        :param kind: names the random streams
        :param draws_each: uniform numbers for a text
        :param write: writes a text
        """
        texts: list[str] = []
        owners: list[str] = []
        products: list[IntArray] = []
        labels: list[IntArray] = []
        languages = tuple(LANGUAGES.index(known) for known in self.languages)
        for name, language, size in self._merchants():
            rng = numpy_stream(self._seed, kind, name)
            habits = draw_habits(language, languages, rng)
            shares = self.grade_skew * rng.dirichlet(np.ones(classes)) + (1 - self.grade_skew) / classes
            drawn = rng.choice(classes, size=size, p=shares)
            chosen = _assortment(world, size, rng)
            draws = rng.random((size, draws_each)).tolist()
            texts.extend(
                write(product, label, habits, draw)
                for product, label, draw in zip(chosen.tolist(), drawn.tolist(), draws, strict=True)
            )
            owners.extend([name] * size)
            products.append(chosen)
            labels.append(drawn)
        return Written(texts, owners, np.concatenate(products), np.concatenate(labels))

    @property
    def _seed(self) -> int:
        """The world's seed; that of the first data seed where nothing was read."""
        return 0 if self.world_seed is None else self.world_seed

    def _merchants(self) -> Iterator[tuple[str, int, int]]:
        """Yield name, main language and number of offers of each merchant."""
        rng = numpy_stream(self._seed, "merchants")
        languages = [LANGUAGES.index(name) for name in self.languages]
        spoken = rng.permutation([languages[at % len(languages)] for at in range(self.merchants)])
        factors = rng.lognormal(-(self.size_spread**2) / 2, self.size_spread, size=self.merchants)
        sizes = np.clip(np.round(self.rows * factors), 1, self.rows * _LARGEST).astype(np.int64)
        for index in range(self.merchants):
            yield f"merchant-{index + 1}", int(spoken[index]), int(sizes[index])


def _assortment(world: World, size: int, rng: np.random.Generator) -> IntArray:
    """Draw the products of a merchant ``[size]`` from some departments and brands, weighted by popularity."""
    departments = rng.dirichlet(np.full(len(DEPARTMENTS), 0.5)) + 0.02
    brands = rng.dirichlet(np.full(len(world.brands), 0.6)) + 1e-6
    weights = np.cumsum(world.popularity * departments[world.department_of] * brands[world.brand_of])
    drawn: IntArray = np.searchsorted(weights, rng.random(size) * weights[-1], side="right")
    return drawn.clip(max=world.products - 1)
