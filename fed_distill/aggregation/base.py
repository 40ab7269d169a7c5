"""What every aggregator does: the global weights and the merchants' updates in, the next global weights out."""

from collections.abc import Iterable, Mapping
from typing import Protocol

from torch import Tensor

from fed_distill.models.weights import Weights
from fed_distill.transport.messages import Uplink


class Aggregator(Protocol):
    """Merges updates and adds the result to the global weights. What it carries from round to round (a server
    optimizer's moments) is in ``state``."""

    def average(self, current: Weights, uplinks: Iterable[Uplink]) -> Weights:
        """The next global weights. ``uplinks`` are ordered by merchant, have the same tables in part, and come in while
        merchants still train: they are iterated once, and an error that ends them leaves ``state`` as it was."""

    def state(self) -> dict[str, Tensor]:
        """What must be kept for the next round, by name; empty if nothing is."""

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a ``state``."""


class Stateless:
    """What an aggregator has in common with others that carry nothing from round to round."""

    def state(self) -> dict[str, Tensor]:
        """Nothing is kept between rounds."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to go on from."""
