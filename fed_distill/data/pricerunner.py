"""PriceRunner: 35,311 real product titles of 306 real merchants in 13,233 clusters of equal products and 10 categories.

UCI data set 837, "Product Classification and Clustering" (L. Akritidis, CC BY 4.0). Categories are given; the grades of
``relevance`` are derived: a cluster's label is the query, its offers are exact, another product of the same brand
(first word of the label) and category is a substitute, and another product of the category a complement.

``matching`` predicts whether a merchant's title and a cluster's label are of one product. Merchants do not see each
other's titles, but the labels are the marketplace's catalogue and public, so each title is paired with its own label
and with those of similar products.
"""

import csv
import io
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from fed_distill.config import DataConfig
from fed_distill.data.catalogue import Catalogue, PairOptions
from fed_distill.data.dataset import Source
from fed_distill.data.download import fetch, find, read_text
from fed_distill.data.labeled import LabeledRows, factorize
from fed_distill.data.tasks import MATCHING, RELEVANCE, category_task, choose_task, label_reader
from fed_distill.errors import DataError

URL = "https://archive.ics.uci.edu/static/public/837/product+classification+and+clustering.zip"
FILE = "pricerunner.csv"
SHA256 = "9cb0af3b6c80f644da05dee170ba383f258ba9e85e3ae362676bccdaae75522b"
HEADER = ("product_id", "product_title", "vendor_id", "cluster_id", "cluster_label", "category_id", "category_label")
_UCI_NAMES = {"merchant_id": "vendor_id"}
_GERMAN = re.compile(
    r"\b(?:schwarz|silber|edelstahl|mit|ohne|und|einbau\w*|mikrowelle\w*|fernseher|mobiltelefon|waschmaschine\w*"
    r"|gefrier\w*|k hl\w*)\b",  # umlauts are missing in the file
    re.IGNORECASE,
)
_GERMAN_SHARE = 0.05
"""Share of German titles above which a merchant counts as German: 17 merchants have at least 10 %, all others less
than 1 %."""


class Offer(NamedTuple):
    """The used fields of one line."""

    title: str
    merchant: str
    cluster: str
    category: str


@dataclass(frozen=True)
class PriceRunner:
    """Titles of real merchants; tasks ``relevance``, ``matching`` and ``category``.

    path: the CSV file, plain or gzipped, or its folder; by default it is searched for in FED_DISTILL_DATA and in the
    cache, then downloaded. domain: what the domain of a row is: its category, or its merchant's language, ``german`` or
    ``english``, detected by words that occur in German titles only. pairs_per_row: pairs per offer (exact, substitute,
    then complement or irrelevant; for matching, all but the first are different products). max_pairs: maximum per
    merchant and part of the split. ranking_queries, ranking_candidates: size of the ranking view.
    """

    path: Path | None = None
    domain: Literal["category", "language"] = "category"
    pairs_per_row: Annotated[int, Field(ge=3)] = 3
    max_pairs: Annotated[int, Field(ge=1)] = 900
    ranking_queries: Annotated[int, Field(ge=1)] = 2000
    ranking_candidates: Annotated[int, Field(ge=2)] = 50

    def read(self, config: DataConfig) -> Source:
        """Read and clean the offers; raise ConfigError for an unsupported task."""
        choose_task(config.task, "pricerunner", ("relevance", "matching", "category"))
        path = find(FILE, self.path) or fetch(URL, ".csv", FILE, SHA256, _with_our_header)
        offers = _read(path)
        languages = _languages(offers) if self.domain == "language" else None
        if config.task == "category":
            task = category_task(offer.category for offer in offers)
            read_label = label_reader(task)
            return LabeledRows.build(
                task,
                texts=[offer.title for offer in offers],
                labels=[read_label(offer.category) for offer in offers],
                merchants=[offer.merchant for offer in offers],
                groups=[offer.cluster.casefold() for offer in offers],
                domains=languages or [offer.category for offer in offers],
                config=config,
                public_texts=True,
            )
        return self._catalogue(offers, languages, config)

    def _catalogue(self, offers: list[Offer], languages: list[str] | None, config: DataConfig) -> Catalogue:
        # Clusters with equal labels are one product: their queries are indistinguishable.
        clusters = [offer.cluster.casefold() for offer in offers]
        categories: dict[str, Counter[str]] = {}
        for cluster, offer in zip(clusters, offers, strict=True):
            categories.setdefault(cluster, Counter())[offer.category] += 1
        category_of = {cluster: counts.most_common(1)[0][0] for cluster, counts in categories.items()}
        return Catalogue.build(
            titles=[offer.title for offer in offers],
            queries=[offer.cluster for offer in offers],
            merchants=[offer.merchant for offer in offers],
            products=factorize(clusters),
            kinds=factorize([(category_of[cluster], (cluster.split() or [""])[0]) for cluster in clusters]),
            families=factorize([category_of[cluster] for cluster in clusters]),
            config=config,
            options=PairOptions(self.pairs_per_row, self.max_pairs, self.ranking_queries, self.ranking_candidates),
            task=MATCHING if config.task == "matching" else RELEVANCE,
            domains=languages or [category_of[cluster] for cluster in clusters],
        )


def _read(path: Path) -> list[Offer]:
    lines = csv.reader(io.StringIO(read_text(path), newline=""))
    header = [_column(name) for name in next(lines, [])]
    missing = sorted(set(HEADER) - set(header))
    if missing:
        raise DataError(f"{path} has no column {missing[0]!r}; it has: {', '.join(header) or 'nothing'}")
    title, merchant, cluster, category = (
        header.index(name) for name in ("product_title", "vendor_id", "cluster_label", "category_label")
    )
    offers = []
    for number, line in enumerate(lines, start=2):
        if len(line) != len(header):
            raise DataError(f"{path}, line {number}: {len(line)} fields where the header has {len(header)}")
        vendor = line[merchant].strip()
        offers.append(Offer(line[title], f"merchant-{vendor}" if vendor else "", line[cluster], line[category]))
    if not offers:
        raise DataError(f"{path} has no rows")
    return offers


def _languages(offers: list[Offer]) -> list[str]:
    """Return the language of each offer's merchant."""
    german, all_of = Counter[str](), Counter[str]()
    for offer in offers:
        all_of[offer.merchant] += 1
        german[offer.merchant] += _GERMAN.search(offer.title) is not None
    return ["german" if german[one.merchant] > _GERMAN_SHARE * all_of[one.merchant] else "english" for one in offers]


def _column(name: str) -> str:
    plain = re.sub(r"\s+", "_", name.strip()).casefold()
    return _UCI_NAMES.get(plain, plain)


def _with_our_header(content: bytes) -> bytes:
    header, _, rest = content.partition(b"\n")
    names = [_column(name) for name in header.decode("utf-8-sig", errors="replace").split(",")]
    return ",".join(names).encode() + b"\n" + rest
