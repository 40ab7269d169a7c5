"""Interface of aggregators: from the global weights and the merchants' updates to the next global weights."""

from collections.abc import Iterable, Mapping
from typing import Protocol, runtime_checkable

from torch import Tensor

from fed_distill.models.weights import Weights
from fed_distill.transport.messages import Uplink


class Aggregator(Protocol):
    """Merges updates and adds the result to the global weights. Its state between rounds (such as a server optimizer's
    moments) is in ``state``."""

    def average(self, current: Weights, uplinks: Iterable[Uplink]) -> Weights:
        """Return the next global weights.

        :param uplinks: uplinks ordered by merchant, with the same partial tables. They arrive while other merchants
            train, and are iterated once; an error in the iteration leaves ``state`` unchanged.
        """

    def state(self) -> dict[str, Tensor]:
        """Return the state for the next round, by name; empty without any."""

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restore a ``state``."""


@runtime_checkable
class HasMinimum(Protocol):
    """An aggregator that requires several merchants."""

    def minimum(self) -> int:
        """Return the minimum number of merchants in a merge."""


class Stateless:
    """Base class of aggregators without state between rounds."""

    def state(self) -> dict[str, Tensor]:
        """Return no state."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Do nothing, as there is no state."""
