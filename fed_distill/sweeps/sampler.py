"""What a sweep runs next, and what it learns from what has ended: a grid of cells, or (``trial_sampler``) trials."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from fed_distill.storage.files import write_atomic
from fed_distill.sweeps.cells import Cell, distinct
from fed_distill.sweeps.places import Places


@dataclass(frozen=True)
class Ending:
    """How a cell has ended. failure: why it has no result, None if it has one. error: kind of that failure, if known.

    found: what the terminal is told of a cell that did not fail.
    """

    failure: str | None = None
    error: str = ""
    found: str = ""


class Sampler(Protocol):
    """Chooses the cells of a sweep; asked and told by the one process that holds the sweep's lock."""

    def begin(self) -> tuple[int, int]:
        """Look at what is kept of the sweep; returns the number of cells in all, and of those that have ended.

        CheckpointError if what is kept is another sweep's, or was run where a default was another.
        """

    def ask(self, is_free: Callable[[Cell], bool]) -> Cell | None:
        """The next cell that ``is_free`` to run now; None if there is none, for now or at all.

        It is asked again when a cell has ended. A cell that is done may be given: it is not run again, and told.
        """

    def hear(self, cell: Cell, event: Mapping[str, Any]) -> bool:
        """What a running cell says of itself, as ``process.Reporter`` sends it; whether to end it as hopeless."""

    def tell(self, cell: Cell, ending: Ending) -> Ending:
        """Note how a cell that was asked for has ended; returns what the terminal is told of it."""


@dataclass
class GridSampler:
    """Each distinct one of ``cells`` once, in their order; what has failed is tried again by the next sweep.

    failures: fingerprint -> reason, of the cells that failed in this sweep.
    """

    cells: Sequence[Cell]
    places: Places
    failures: dict[str, str] = field(default_factory=dict)
    _pending: list[Cell] = field(default_factory=list)

    def begin(self) -> tuple[int, int]:
        """Find out what is done; CheckpointError if a cell was run where a default was another."""
        everything = list(distinct(self.cells).values())
        for cell in everything:
            self.places.check(cell)
        self._pending = [cell for cell in everything if not self.places.is_done(cell)]
        return len(everything), len(everything) - len(self._pending)

    def ask(self, is_free: Callable[[Cell], bool]) -> Cell | None:
        """The first cell that may run."""
        cell = next(filter(is_free, self._pending), None)
        if cell is not None:
            self._pending.remove(cell)
            self.places.failure(cell.fingerprint).unlink(missing_ok=True)
        return cell

    def hear(self, cell: Cell, event: Mapping[str, Any]) -> bool:
        """No cell is hopeless: a study wants to know them all."""
        return False

    def tell(self, cell: Cell, ending: Ending) -> Ending:
        """Keep the reason of a failure."""
        if ending.failure is not None:
            self.failures[cell.fingerprint] = ending.failure
            write_atomic(self.places.failure(cell.fingerprint), ending.failure + "\n")
        return ending
