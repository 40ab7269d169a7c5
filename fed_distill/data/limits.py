"""Reduce prepared data for quick runs: fewer clients and fewer examples per table."""

from dataclasses import replace

import numpy as np

from fed_distill.config import DataConfig
from fed_distill.data.examples import ColdMerchants, Examples, FederatedData, MerchantData, Ranking
from fed_distill.seeds import numpy_stream


def limited(data: FederatedData, config: DataConfig) -> FederatedData:
    """Keep ``config.max_merchants`` clients and ``config.max_examples`` examples in each table.

    The clients with the most training examples are kept. Rankings are cut by whole queries.
    """
    if config.max_merchants is None and config.max_examples is None:
        return data
    by_size = sorted(data.merchants.values(), key=lambda merchant: (-len(merchant.train), merchant.name))
    kept = {merchant.name for merchant in by_size[: config.max_merchants]}
    merchants = {
        name: MerchantData(
            name,
            _sample(merchant.train, config, f"train of {name}"),
            _sample(merchant.valid, config, f"valid of {name}"),
            _sample(merchant.test, config, f"test of {name}"),
            _sample(merchant.unlabeled, config, f"unlabeled of {name}"),
        )
        for name, merchant in data.merchants.items()
        if name in kept
    }
    return replace(
        data,
        public=_sample(data.public, config, "public"),
        public_valid=_sample(data.public_valid, config, "public_valid"),
        merchants=merchants,
        valid=_sample(_of(data.valid, kept) if kept else data.valid, config, "valid"),
        # A test domain is measured on all merchants that have it, clients or not.
        test=_sample(_of(data.test, kept) if kept and config.test_domain is None else data.test, config, "test"),
        ranking_valid=_whole_queries(data.ranking_valid, config),
        ranking_test=_whole_queries(data.ranking_test, config),
        cold=None if data.cold is None else _limited_cold(data.cold, config),
        account={
            **data.account,
            "limited_to": {"merchants": len(merchants), "examples_per_table": config.max_examples},
        },
    )


def _limited_cold(cold: ColdMerchants, config: DataConfig) -> ColdMerchants:
    return replace(cold, test=_sample(cold.test, config, "cold"), ranking=_whole_queries(cold.ranking, config))


def _of(examples: Examples, merchants: set[str]) -> Examples:
    return examples.take([row for row, name in enumerate(examples.merchants) if name in merchants])


def _sample(examples: Examples, config: DataConfig, purpose: str) -> Examples:
    if config.max_examples is None or len(examples) <= config.max_examples:
        return examples
    draw = numpy_stream(config.seed, "limit", purpose)
    return examples.take(np.sort(draw.choice(len(examples), config.max_examples, replace=False)))


def _whole_queries(ranking: Ranking | None, config: DataConfig) -> Ranking | None:
    if ranking is None or config.max_examples is None:
        return ranking
    sizes = np.bincount(ranking.queries)
    fitting = np.cumsum(sizes) <= max(config.max_examples, int(sizes[0]))
    rows = np.flatnonzero(fitting[ranking.queries])
    return Ranking(ranking.examples.take(rows), ranking.queries[rows])
