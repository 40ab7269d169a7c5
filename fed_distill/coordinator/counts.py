"""Limit a merchant's weight in a mean, independently of the size that it claims.

Merchants report their own number of training examples and their use counts of table rows. Without a limit, one merchant
could replace the global student: among four merchants of 500 examples, one that claims 2^31 has all but 1e-6 of the
weight. In each round, claims are therefore truncated to the lower of two limits. Both are computed from the sizes of
the merchants in the first chunk, and honest merchants rarely reach them:

- a share of the total weight after truncation, with merchants of later chunks at the median (``federation.max_share``,
  0.6): with few merchants, none has almost the whole weight, and two of similar sizes keep theirs. This limits a single
  Byzantine merchant; the median limits several (truncation of weights to a maximum share: Portnoy, Tirosh and Hendler,
  "Towards federated learning with Byzantine-robust client weighting", Applied Sciences 2022);
- a multiple of the median (``federation.max_size_ratio``, 20): with many merchants, one has at most about
  20 / (20 + merchants) of the weight, unless half of the chunk is Byzantine. The largest of PriceRunner's merchants has
  3 times the median in the relevance task, and 18 times in the category task.

The same limits apply to the use counts of each table, where the sum of a merchant's counts for a table is limited: it
can have a large weight in few rows, but not in all.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import median_low

from fed_distill.logs import observed
from fed_distill.payloads.base import CountsRows, Payload
from fed_distill.transport.messages import Uplink

_SLACK = 1e-6
"""Tolerance in examples, for rounding of a limit."""

_log = logging.getLogger(__name__)


class Counts:
    """The limits of one round: ``learn`` them from the first chunk, then ``cut`` the weight of each uplink."""

    def __init__(
        self, share: float | None = None, ratio: float | None = None, power: int = 1, logged: set[str] | None = None
    ) -> None:
        """share, ratio: the limits, None for no limit. power: exponent of a merchant's examples in its weight. logged:
        merchants whose truncation was logged, which is logged once."""
        self._share, self._ratio, self._power = share, ratio, power
        self._logged: set[str] = set() if logged is None else logged
        self._examples: float | None = None
        self._uses: dict[str, float] = {}

    def learn(self, uplinks: Sequence[Uplink], more: int = 0) -> None:
        """Compute the limits from the uplinks of the first chunk; ``more`` merchants follow."""
        if self._examples is not None or not uplinks:
            return
        self._examples = self._most((one.examples**self._power for one in uplinks), more) ** (1 / self._power)
        tables = [_uses(uplink) for uplink in uplinks]
        self._uses = {name: self._most((one[name] for one in tables), more) for name in tables[0]}

    def cut(self, uplink: Uplink) -> Uplink:
        """Return the uplink with its examples and use counts truncated to the limits."""
        assert self._examples is not None
        examples = uplink.examples if uplink.examples <= self._examples else max(int(self._examples + _SLACK), 1)
        factors = {name: self._uses[name] / uses for name, uses in _uses(uplink).items() if uses > self._uses[name]}
        if examples == uplink.examples and not factors:
            return uplink
        if uplink.merchant not in self._logged:
            self._logged.add(uplink.merchant)
            whole = examples == uplink.examples
            what = "its uses of table rows" if whole else f"{examples} of {uplink.examples} examples"
            with observed(merchant=uplink.merchant):
                _log.warning(
                    "the weight of merchant %s is truncated, in this round and possibly in others: %s "
                    "(federation.max_share, federation.max_size_ratio)",
                    uplink.merchant,
                    what,
                )
        payloads = (_scaled(one, factors) if isinstance(one, CountsRows) else one for one in uplink.payloads)
        return replace(uplink, examples=examples, payloads=tuple(payloads))

    def _most(self, claims: Iterable[float], more: int) -> float:
        """Return the limit for these claims, ignoring zeros."""
        sizes = [float(claim) for claim in claims if claim]
        return most(sizes, self._share, self._ratio, more) if sizes else float("inf")


def most(sizes: Sequence[float], share: float | None, ratio: float | None, more: int = 0) -> float:
    """Return the limit of a size: after truncation, no size is above ``share`` of the sum, or above ``ratio`` times the
    lower median.

    It is infinite if nothing is truncated. If there are too few sizes to be below the share, all are truncated to the
    same value.

    :param more: number of further sizes, taken as the median
    """
    usual = median_low(sizes)
    limit = float("inf") if ratio is None else ratio * usual
    if share is None or len(sizes) + more == 1:
        return limit
    falling = sorted((min(size, limit) for size in sizes), reverse=True)
    rest = sum(falling) + more * usual
    for cut, size in enumerate(falling):
        even = (
            share * rest / (1 - share * cut) if share * cut < 1 else size
        )  # if this many of the largest are truncated
        if size <= even:
            return even if cut else limit
        rest -= size
    return falling[-1]


def _uses(uplink: Uplink) -> dict[str, float]:
    """Return a merchant's total use count of each table that it sends in part."""
    sent = (payload for payload in uplink.payloads if isinstance(payload, CountsRows))
    return {name: float(counts.sum()) for payload in sent for name, counts in payload.counts.items()}


def _scaled(sent: CountsRows, factors: Mapping[str, float]) -> Payload:
    return sent.with_counts({**sent.counts, **{name: sent.counts[name] * factors[name] for name in factors}})
