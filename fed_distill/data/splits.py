"""Split a source between the server and the merchants, in the same way for every dataset.

Groups are split across all merchants at once, so that a test product is in nobody's training data, public merchants
included; a source of purchases is split by time instead. The data of public merchants belong to the server: these are a
share of the merchants that are large enough, and all that are too small. All draws use ``data.seed``.

Rows may have domains. A test domain is for evaluation only (leave-one-domain-out; Blitzer et al. 2007, ACL): the test
set contains only its rows, training and validation none. Parts are drawn first, so that its test rows are the same as
in an experiment without a test domain. Proxy domains are used for the proxy set only; a domain that is both gives the
setting of unsupervised domain adaptation.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fed_distill.config import DataConfig
from fed_distill.config.data import ClicksConfig
from fed_distill.data.click_labels import labelled_by_clicks
from fed_distill.data.dataset import HasParts, IntArray, Source, has_independent_users, true_effects
from fed_distill.data.examples import (
    UNLABELED,
    ColdMerchants,
    Examples,
    FederatedData,
    MerchantData,
    Ranking,
    Task,
)
from fed_distill.data.groups import groupings, largest_group, merchants_of_a_group
from fed_distill.data.proxy import proxy_set, shortfall
from fed_distill.data.proxy_account import proxy_account
from fed_distill.errors import ConfigError, DataError
from fed_distill.seeds import derive, numpy_stream

LOG = logging.getLogger("fed_distill.data")

PARTS = ("train", "valid", "test")
_ROLES = (*PARTS, "proxy", "unused")
"""Use of a row. ``proxy``: for the proxy set only."""
_UNLABELED = ("proxy", "unlabeled")
"""Tables without labels."""


@dataclass(frozen=True)
class Split:
    """Result of the split.

    roles: ``[rows]``, index into `PARTS`, or into `_ROLES` where domains are excluded. public, small, clients, cold:
    sorted merchant indices; the ``small`` ones have too few rows to be clients and are public too, and the ``cold``
    ones, which would be clients, are held out whole.
    """

    roles: IntArray
    public: tuple[int, ...]
    small: tuple[int, ...]
    clients: tuple[int, ...]
    cold: tuple[int, ...] = ()


def federate(source: Source, config: DataConfig, proxy_source: Source | None = None) -> FederatedData:
    """Split ``source`` according to ``config`` and make the examples of all participants.

    :param source: rows of all merchants
    :param config: shares, domains and seed
    :param proxy_source: separate dataset of the proxy set, if any; all its rows are used
    :raises ConfigError: a domain does not exist
    :raises DataError: there is no client or no public merchant, the proxy set is empty, or all training examples have
        one class
    """
    split = split_rows(source, config)
    row_blocks = _RowBlocks(source, split.roles)
    public = _labelled(_together(source, row_blocks, split.public, "train", config), "train", config)
    if not len(public):
        raise DataError(
            "the public merchants have no training examples; raise data.public_share or lower data.test_share"
        )
    merchants = {source.names[index]: _merchant(source, row_blocks, index, config) for index in split.clients}
    _check_classes(source.task, [public, *(merchant.train for merchant in merchants.values())])
    held_out = {part: np.flatnonzero(split.roles == _ROLES.index(part)) for part in ("valid", "test")}
    joined = {part: rows[~np.isin(source.owners[rows], split.cold)] for part, rows in held_out.items()}
    tests = [merchant.test for merchant in merchants.values()]
    valids = [merchant.valid for merchant in merchants.values()]
    if not merchants:
        valids.append(_together(source, row_blocks, split.public, "valid", config))
    if not merchants or config.test_domain is not None:  # then a merchant may have no training examples
        tests.append(_together(source, row_blocks, split.public, "test", config))
    parties = tuple(sorted({*split.public, *split.clients})) if config.proxy_from == "catalogue" else split.public
    proxy, proxy_truth = proxy_set(
        source,
        row_blocks.of(parties, "proxy" if config.proxy_domains else "train"),
        config,
        proxy_source,
        np.concatenate(list(held_out.values())),
    )
    data = FederatedData(
        task=source.task,
        public=public,
        public_valid=_labelled(_together(source, row_blocks, split.public, "valid", config), "valid", config),
        proxy=proxy,
        proxy_truth=proxy_truth,
        merchants=merchants,
        valid=_stack(valids, public),
        test=_stack(tests, public),
        ranking_valid=source.ranking(joined["valid"], "valid", config.seed),
        ranking_test=source.ranking(joined["test"], "test", config.seed),
        account={},
        cold=_cold(source, row_blocks, split, config),
        true_effects=true_effects(source, held_out["test"]),
        independent_users=has_independent_users(source),
    )
    return _with_account(data, source, split, row_blocks, config)


def split_rows(source: Source, config: DataConfig) -> Split:
    """Draw parts, roles and public merchants; with remote clients, all local merchants are public."""
    roles = _leave_out(
        source, _own_parts(source) if isinstance(source, HasParts) else draw_parts(source.groups, config), config
    )
    if config.clients == "elsewhere":
        for key, unset in (("client_labels", 1.0), ("cold_merchants", 0.0), ("clicks", ClicksConfig())):
            if getattr(config, key) != unset:
                raise ConfigError(
                    f"data.{key} is for simulations, but data.clients = 'elsewhere' has no local clients: remove it"
                )
        return Split(roles, public=tuple(range(len(source.names))), small=(), clients=())
    training = np.bincount(source.owners[roles == 0], minlength=len(source.names))
    rows = np.bincount(source.owners[roles < len(PARTS)], minlength=len(source.names))
    enough = (rows >= config.min_rows) & (training >= 2)
    large, small = np.flatnonzero(enough), np.flatnonzero(~enough)
    if not len(large):
        raise DataError(
            f"no merchant is large enough to be a client: {len(small)} merchants have {rows.min()} to {rows.max()} "
            f"rows, below data.min_rows = {config.min_rows}; lower data.min_rows"
        )
    if len(source.names) == 1:
        raise DataError(
            f"{source.names[0]} is the only merchant; at least one public merchant and one client are required"
        )
    public_count = round(config.public_share * len(large))
    if config.public_share > 0 and not len(small):
        public_count = max(public_count, 1)
    public_count = min(public_count, len(large) - 1)
    if not public_count and not len(small):
        raise DataError(
            f"no merchant is public: data.public_share = {config.public_share} of {len(large)} merchants; raise it"
        )
    public = _spread(
        large[np.argsort(training[large], kind="stable")], public_count, numpy_stream(config.seed, "public")
    )
    clients = np.setdiff1d(large, public)
    by_size = clients[np.argsort(training[clients], kind="stable")]
    if config.cold_merchants and len(clients) < 2:
        raise DataError(
            f"data.cold_merchants = {config.cold_merchants} would leave no client, as there is only one: "
            "lower data.min_rows or data.public_share, or remove it"
        )
    cold_count = min(_count(config.cold_merchants, len(clients)), len(clients) - 1)
    cold = _spread(by_size, cold_count, numpy_stream(config.seed, "cold merchants"))
    return Split(
        roles,
        public=tuple(sorted([*small.tolist(), *public])),
        small=tuple(small.tolist()),
        clients=tuple(np.setdiff1d(clients, cold).tolist()),
        cold=tuple(sorted(cold)),
    )


def _count(share: float, whole: int) -> int:
    """Return the ``share`` of ``whole``, at least one unless either is 0."""
    return max(round(share * whole), min(whole, 1)) if share else 0


def _spread(by_size: IntArray, count: int, rng: np.random.Generator) -> list[int]:
    """Draw one merchant from each of ``count`` size classes, to reduce the variance of the drawn merchants' share."""
    return [int(rng.choice(size_class)) for size_class in np.array_split(by_size, max(count, 1))[:count]]


def _own_parts(source: HasParts) -> IntArray:
    return np.where(source.parts < 0, _ROLES.index("unused"), source.parts)


def draw_parts(groups: IntArray, config: DataConfig) -> IntArray:
    """Draw each row's part by group: index into `PARTS`, ``[rows]``; raise DataError if there are too few groups."""
    distinct, of_row = np.unique(groups, return_inverse=True)
    sizes = [round(share * len(distinct)) for share in (config.valid_share, config.test_share)]
    sizes = [
        max(size, 1) if share else 0 for size, share in zip(sizes, (config.valid_share, config.test_share), strict=True)
    ]
    if sum(sizes) >= len(distinct):
        raise DataError(
            f"{len(distinct)} groups are too few for data.valid_share = {config.valid_share} and "
            f"data.test_share = {config.test_share}; use a finer group column or more data"
        )
    order = numpy_stream(config.seed, "groups").permutation(len(distinct))
    part = np.zeros(len(distinct), dtype=np.int64)
    part[order[: sizes[0]]] = 1
    part[order[sizes[0] : sum(sizes)]] = 2
    return part[of_row]


def parts_by_name(names: Sequence[str], config: DataConfig) -> IntArray:
    """Assign each group to a part by a hash of its name, so that adding or removing rows moves no other group.

    The shares hold on average; of few groups, none or all may be held out.

    :returns: index into `PARTS`, ``[groups]``
    """
    at = np.asarray([derive(config.seed, "part", name) / 2**63 for name in names])
    held_out = config.valid_share + config.test_share
    return np.where(at < config.valid_share, 1, np.where(at < held_out, 2, 0)).astype(np.int64)


def _leave_out(source: Source, parts: IntArray, config: DataConfig) -> IntArray:
    """Return roles: ``parts``, except for rows of test and proxy domains and, with a test domain, other test rows."""
    if config.test_domain is None and not config.proxy_domains:
        return parts
    known = () if source.domains is None else tuple(sorted(set(source.domains)))
    for key, names in (("test_domain", [config.test_domain]), ("proxy_domains", config.proxy_domains)):
        unknown = [name for name in names if name is not None and name not in known]
        if unknown:
            raise ConfigError(
                f"data.{key} = {unknown[0]!r} is not a domain of dataset {config.dataset!r}; "
                + (f"it has: {', '.join(known)}" if known else "it has no domains")
            )
    domains = np.asarray(source.domains)
    tested, for_proxy = domains == config.test_domain, np.isin(domains, config.proxy_domains)
    train, test, proxy, unused = (_ROLES.index(role) for role in ("train", "test", "proxy", "unused"))
    roles = np.where(tested | for_proxy, unused, parts)
    roles[for_proxy & (parts == train)] = proxy
    if config.test_domain is not None:
        roles[parts == test] = unused
        roles[tested & (parts == test)] = test
    return roles


class _RowBlocks:
    """Rows sorted by (merchant, role), so that the rows of each merchant are a slice."""

    def __init__(self, source: Source, roles: IntArray) -> None:
        keys = source.owners * len(_ROLES) + roles
        self._order = np.argsort(keys, kind="stable")
        self._edges = np.searchsorted(keys[self._order], np.arange(len(source.names) * len(_ROLES) + 1))

    def of(self, merchants: Sequence[int], role: str) -> IntArray:
        """Return the rows of one role, merchant by merchant."""
        slots = [merchant * len(_ROLES) + _ROLES.index(role) for merchant in merchants]
        return np.concatenate(
            [self._order[:0], *(self._order[self._edges[slot] : self._edges[slot + 1]] for slot in slots)]
        )


def _of_one(source: Source, row_blocks: _RowBlocks, merchant: int, part: str, config: DataConfig) -> Examples:
    return source.examples(row_blocks.of([merchant], part), source.names[merchant], part, config.seed)


def _merchant(source: Source, row_blocks: _RowBlocks, merchant: int, config: DataConfig) -> MerchantData:
    """Make the tables of a client; a share of its training examples keeps the labels."""
    name = source.names[merchant]
    train, valid, test = (_of_one(source, row_blocks, merchant, part, config) for part in PARTS)
    if config.clicks.sessions:
        train = labelled_by_clicks(train, source.task, config.clicks, name, config.seed)
    if config.client_labels == 1.0:
        return MerchantData(name, train, valid, test)
    rng = numpy_stream(config.seed, "client labels", name)
    order = rng.permutation(len(train))
    known = np.zeros(len(train), dtype=np.bool_)
    known[order[: _count(config.client_labels, len(train))]] = True
    rest = train.take(np.flatnonzero(~known)).unlabeled()
    return MerchantData(name, train.take(np.flatnonzero(known)), valid, test, rest)


def _cold(source: Source, row_blocks: _RowBlocks, split: Split, config: DataConfig) -> ColdMerchants | None:
    if not split.cold:
        return None
    return ColdMerchants(
        tuple(source.names[index] for index in split.cold),
        _together(source, row_blocks, split.cold, "test", config),
        source.ranking(row_blocks.of(split.cold, "test"), "test", config.seed),
    )


def _together(
    source: Source, row_blocks: _RowBlocks, merchants: Sequence[int], part: str, config: DataConfig
) -> Examples:
    return Examples.concatenate([_of_one(source, row_blocks, merchant, part, config) for merchant in merchants])


def _labelled(examples: Examples, part: str, config: DataConfig) -> Examples:
    """Keep labels for a share of the public examples (at least one) and drop the other examples."""
    if config.public_labels == 1.0:
        return examples
    count = _count(config.public_labels, len(examples))
    rng = numpy_stream(config.seed, "public labels", part)
    return examples.take(np.sort(rng.choice(len(examples), count, replace=False)))


def _stack(parts: Sequence[Examples], like: Examples) -> Examples:
    """Concatenate tables; the result without rows has the columns of ``like``."""
    return Examples.concatenate([*parts, like.take([])])


def _check_classes(task: Task, tables: Sequence[Examples]) -> None:
    seen = {int(label) for table in tables for label in np.unique(table.labels)} - {UNLABELED}
    if len(seen) < 2:
        only = ", ".join(task.classes[label] for label in seen) or "none"
        raise DataError(f"all training examples have one class ({only}); {task.name} requires at least two")


def _with_account(
    data: FederatedData, source: Source, split: Split, row_blocks: _RowBlocks, config: DataConfig
) -> FederatedData:
    single = [name for name, merchant in data.merchants.items() if len(np.unique(merchant.train.labels)) < 2]
    if single:
        LOG.warning("the training examples of %d merchants have one class only", len(single))
    if len(np.unique(data.public.labels)) < 2:
        LOG.warning("the public merchants' examples have one class only, so a teacher cannot be trained on them")
    if data.task.gains is not None and data.ranking_test is None:
        LOG.warning(
            "no ranking view: no held-out query has candidates of two grades; use more products or coarser groups"
        )
    tables, short = dict(_tables(data)), shortfall(config, len(data.proxy))
    account: dict[str, Any] = {
        "dataset": config.dataset,
        "task": data.task.name,
        "cleaning": dict(source.account),
        "merchants": {
            "all": len(source.names),
            "public": len(split.public),
            "too_small": len(split.small),
            "clients": len(split.clients),
            **({"cold": len(split.cold)} if split.cold else {}),
            "single_class": single,
        },
        "client_rows": {source.names[index]: len(row_blocks.of([index], "train")) for index in split.clients},
        "rows": {
            "public": {part: len(row_blocks.of(split.public, part)) for part in PARTS},
            "clients": {part: len(row_blocks.of(split.clients, part)) for part in PARTS},
        },
        "largest_group": {by: largest_group(data, by) for by in groupings(data.task)},
        "merchants_of_a_group": {by: merchants_of_a_group(data, by) for by in groupings(data.task)},
        "groups": {part: len(np.unique(source.groups[split.roles == index])) for index, part in enumerate(PARTS)},
        "examples": {name: sum(map(len, parts)) for name, parts in tables.items()},
        "classes": {name: class_counts(data.task, parts) for name, parts in tables.items() if name not in _UNLABELED},
        "ranking": {
            "valid": _ranking_account(data.ranking_valid),
            "test": _ranking_account(data.ranking_test),
            **({} if data.cold is None else {"cold": _ranking_account(data.cold.ranking)}),
        },
        "proxy": proxy_account(data),
        **({"proxy_set": short} if short else {}),
    }
    return FederatedData(**{**{name: getattr(data, name) for name in data.__dataclass_fields__}, "account": account})


def _tables(data: FederatedData) -> Iterator[tuple[str, list[Examples]]]:
    yield "public", [data.public]
    yield "public_valid", [data.public_valid]
    yield "proxy", [data.proxy]
    yield "train", [merchant.train for merchant in data.merchants.values()]
    if any(len(merchant.unlabeled) for merchant in data.merchants.values()):
        yield "unlabeled", [merchant.unlabeled for merchant in data.merchants.values()]
    yield "valid", [data.valid]
    yield "test", [data.test]
    if data.cold is not None:
        yield "cold", [data.cold.test]


def class_counts(task: Task, tables: Sequence[Examples]) -> dict[str, int]:
    """Count the examples of each class over ``tables``."""
    counts = np.zeros(len(task.classes), dtype=np.int64)
    for table in tables:
        counts += np.bincount(table.labels[table.labels != UNLABELED], minlength=len(task.classes))
    return dict(zip(task.classes, counts.tolist(), strict=True))


def _ranking_account(ranking: Ranking | None) -> Mapping[str, float] | None:
    if ranking is None:
        return None
    queries = int(ranking.queries.max()) + 1
    return {
        "queries": queries,
        "candidates_per_query": round(len(ranking.queries) / queries, 2),
        "best_grade_per_query": round(int((ranking.examples.labels == 0).sum()) / queries, 2),
    }
