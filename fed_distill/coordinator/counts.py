"""What a merchant counts for in a mean at most, whatever size it claims.

How many training examples a merchant has, and how often they use the rows of a table, is its own word. Whoever may say
any number is the next global student: beside four merchants of 500 examples one that claims 2^31 is all but 1e-6 of the
mean. So in each round claims are cut to the least of two limits, which both are taken from the sizes of the merchants
in the first chunk, and which honest merchants rarely reach:

- a share of what all merchants then count for, those of later chunks as the median (``federation.max_share``, 0.6): of
  few merchants none is nearly the whole mean, and two of like sizes keep theirs. It holds against one; several that lie
  together are held by the median (weights truncated to a greatest share: Portnoy, Tirosh and Hendler, "Towards
  federated learning with Byzantine-robust client weighting", Applied Sciences 2022);
- a multiple of the median (``federation.max_size_ratio``, 20): of many merchants one is about 20 / (20 + merchants) of
  the mean, and it stays so unless half of the chunk is Byzantine. The largest of PriceRunner's merchants has 3 times
  the median in the relevance task, and 18 times in the category task.

The same holds of the uses of each table's rows, of which all that a merchant claims for one table are cut together: it
may lay them on few rows, where it then counts for much, or on all, and not count for much everywhere.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import median_low

from fed_distill.logs import observed
from fed_distill.payloads.base import CountsRows, Payload
from fed_distill.transport.messages import Uplink

_SLACK = 1e-6
"""Examples by which rounding may have made a limit too low."""

_log = logging.getLogger(__name__)


class Counts:
    """The limits of one round: ``learn`` from its first chunk, then ``cut`` what each uplink counts for."""

    def __init__(
        self, share: float | None = None, ratio: float | None = None, power: int = 1, told: set[str] | None = None
    ) -> None:
        """share, ratio: the limits, None for no such. power: of its examples, by which a merchant counts. told: who has
        been named in the log as cut, and is not named again."""
        self._share, self._ratio, self._power = share, ratio, power
        self._told: set[str] = set() if told is None else told
        self._examples: float | None = None
        self._uses: dict[str, float] = {}

    def learn(self, uplinks: Sequence[Uplink], more: int = 0) -> None:
        """Take the limits from these merchants, the first that there are; ``more`` are still to come."""
        if self._examples is not None or not uplinks:
            return
        self._examples = self._most((one.examples**self._power for one in uplinks), more) ** (1 / self._power)
        tables = [_uses(uplink) for uplink in uplinks]
        self._uses = {name: self._most((one[name] for one in tables), more) for name in tables[0]}

    def cut(self, uplink: Uplink) -> Uplink:
        """The same uplink, with examples and uses of rows within the limits."""
        assert self._examples is not None
        examples = uplink.examples if uplink.examples <= self._examples else max(int(self._examples + _SLACK), 1)
        factors = {name: self._uses[name] / uses for name, uses in _uses(uplink).items() if uses > self._uses[name]}
        if examples == uplink.examples and not factors:
            return uplink
        if uplink.merchant not in self._told:
            self._told.add(uplink.merchant)
            with observed(merchant=uplink.merchant):
                _log.warning(
                    "merchant %s counts for less than it claims, in this round and perhaps in others: for %d of %d "
                    "examples (federation.max_share, federation.max_size_ratio)",
                    uplink.merchant,
                    examples,
                    uplink.examples,
                )
        payloads = (_scaled(one, factors) if isinstance(one, CountsRows) else one for one in uplink.payloads)
        return replace(uplink, examples=examples, payloads=tuple(payloads))

    def _most(self, claims: Iterable[float], more: int) -> float:
        """The limit that these claims give; those of nothing are no measure for the others."""
        sizes = [float(claim) for claim in claims if claim]
        return most(sizes, self._share, self._ratio, more) if sizes else float("inf")


def most(sizes: Sequence[float], share: float | None, ratio: float | None, more: int = 0) -> float:
    """What one of ``sizes`` may count for: cut to it, none is more than ``share`` of their sum, or than ``ratio`` times
    the lower median; ``more`` others have the median. Infinite where none is cut; where they are too few to be below
    the share, all count the same.
    """
    usual = median_low(sizes)
    limit = float("inf") if ratio is None else ratio * usual
    if share is None or len(sizes) + more == 1:
        return limit
    falling = sorted((min(size, limit) for size in sizes), reverse=True)
    rest = sum(falling) + more * usual
    for cut, size in enumerate(falling):
        even = share * rest / (1 - share * cut) if share * cut < 1 else size  # if so many of the largest are cut to it
        if size <= even:
            return even if cut else limit
        rest -= size
    return falling[-1]


def _uses(uplink: Uplink) -> dict[str, float]:
    """How often a merchant says that it uses the rows of each table that it sends in part, in all."""
    sent = (payload for payload in uplink.payloads if isinstance(payload, CountsRows))
    return {name: float(counts.sum()) for payload in sent for name, counts in payload.counts.items()}


def _scaled(sent: CountsRows, factors: Mapping[str, float]) -> Payload:
    return sent.with_counts({**sent.counts, **{name: sent.counts[name] * factors[name] for name in factors}})
