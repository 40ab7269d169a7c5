"""Samplers select the cells of a sweep: a grid here, Optuna's trials in ``trial_sampler``."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from fed_distill.storage.files import write_atomic
from fed_distill.sweeps.cells import Cell, distinct
from fed_distill.sweeps.places import Places


@dataclass(frozen=True)
class Ending:
    """How a cell ended. failure: why it has no result, or None. error: type of that error, if known. found: text
    for the terminal about a cell that succeeded.
    """

    failure: str | None = None
    error: str = ""
    found: str = ""


class Sampler(Protocol):
    """Selects the cells of a sweep through an ask-and-tell interface; used by the process with the sweep's lock."""

    def begin(self) -> tuple[int, int]:
        """Load the state of the sweep; return the number of cells and of finished ones.

        :raises CheckpointError: the state is of another sweep, or was computed with other defaults
        """

    def ask(self, is_free: Callable[[Cell], bool]) -> Cell | None:
        """Return the next cell for which ``is_free`` holds; None if there is none at present.

        It is called again when a cell ends. A finished cell may be returned: it is not run, but reported to ``tell``.
        """

    def report(self, cell: Cell, event: Mapping[str, Any]) -> bool:
        """Process an event of a running cell (see ``process.Reporter``); return whether to stop the cell."""

    def tell(self, cell: Cell, ending: Ending) -> Ending:
        """Record how a cell ended; return what the terminal shows."""


@dataclass
class GridSampler:
    """Selects each distinct one of ``cells`` once, in order; failed cells are repeated by the next sweep.

    failures: reason by fingerprint, for the cells that failed in this sweep.
    """

    cells: Sequence[Cell]
    places: Places
    failures: dict[str, str] = field(default_factory=dict)
    _pending: list[Cell] = field(default_factory=list)

    def begin(self) -> tuple[int, int]:
        """Find finished cells; raise CheckpointError if one was run with other defaults."""
        everything = list(distinct(self.cells).values())
        for cell in everything:
            self.places.check(cell)
        self._pending = [cell for cell in everything if not self.places.is_done(cell)]
        return len(everything), len(everything) - len(self._pending)

    def ask(self, is_free: Callable[[Cell], bool]) -> Cell | None:
        """Return the first cell that may run."""
        cell = next(filter(is_free, self._pending), None)
        if cell is not None:
            self._pending.remove(cell)
            self.places.failure(cell.fingerprint).unlink(missing_ok=True)
        return cell

    def report(self, cell: Cell, event: Mapping[str, Any]) -> bool:
        """Return False: a study needs all of its cells."""
        return False

    def tell(self, cell: Cell, ending: Ending) -> Ending:
        """Store the reason of a failure."""
        if ending.failure is not None:
            self.failures[cell.fingerprint] = ending.failure
            write_atomic(self.places.failure(cell.fingerprint), ending.failure + "\n")
        return ending
