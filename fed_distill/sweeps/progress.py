"""Terminal progress of a sweep: finished cells, time left and running cells; plain lines without a terminal."""

import time
from collections.abc import Callable

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as Bars

from fed_distill.reporting.terminal_progress import whole
from fed_distill.reporting.wording import duration, size
from fed_distill.sweeps.cells import Cell


class SweepProgress:
    """Shows the progress of a ``Runner``: live lines for the sweep and running cells, and one per finished cell."""

    def __init__(
        self, console: Console | None = None, clock: Callable[[], float] = time.monotonic, noun: str = "cell"
    ) -> None:
        """``noun``: the word for a cell."""
        self._noun = noun
        self._console = console or Console(stderr=True)
        self._clock = clock
        self._bars: Bars | None = None
        self._whole: TaskID | None = None
        self._tasks: dict[str, TaskID] = {}
        self._began: dict[str, float] = {}
        self._took: list[float] = []
        self._total = self._done = 0
        self._processes = 1
        self._waits = False

    def on_begin(self, total: int, finished: int, processes: int) -> None:
        """Show the number of cells."""
        self._total, self._done, self._processes = total, finished, processes
        there = f", {finished:,} of them finished before" if finished else ""
        self.say(f"{total:,} {self._noun}s{there}; at most {processes} at a time")
        if self._console.is_terminal and finished < total:
            self._bars = Bars(
                TextColumn("{task.description}", table_column=whole()),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[facts]}", table_column=whole()),
                console=self._console,
            )
            self._whole = self._bars.add_task("study", total=total, completed=finished, facts="")
            self._bars.start()

    def on_start(self, cell: Cell, again: bool) -> None:
        """Start the clock and the line of a cell."""
        self._waits = False
        self._began[cell.fingerprint] = self._clock()
        if self._bars is not None:
            facts = "resumed" if again else "starts"
            self._tasks[cell.fingerprint] = self._bars.add_task(escape(f"  {cell.title}"), total=None, facts=facts)
        else:
            self.say(f"{'resumes' if again else 'starts'} {cell.title}")

    def on_event(self, cell: Cell, what: str) -> None:
        """Show the cell's current activity in its live line."""
        if self._bars is not None:
            self._bars.update(self._tasks[cell.fingerprint], facts=escape(what))

    def on_finish(self, cell: Cell, failure: str | None, found: str = "") -> None:
        """Count the cell and show its result, ``failure`` or what it ``found``."""
        took = self._clock() - self._began.pop(cell.fingerprint)
        self._took.append(took)
        self._done += 1
        left = self.time_left()
        if self._bars is not None and self._whole is not None:
            self._bars.remove_task(self._tasks.pop(cell.fingerprint))
            facts = "" if left is None else f"about {duration(left)} left"
            self._bars.update(self._whole, completed=self._done, facts=facts)
        became = f"{found} in {duration(took)}".strip() if failure is None else f"FAILED: {failure}"
        shown = "" if left is None or self._bars is not None else f"; about {duration(left)} left"
        self.say(f"{self._done} of {self._total}: {cell.title} {became}{shown}")

    def on_wait(self, needed: int, available: int) -> None:
        """Report once that memory is short."""
        if not self._waits:
            self._waits = True
            self.say(f"waits for memory: another {self._noun} may need {size(needed)}, {size(available)} are available")

    def time_left(self) -> float | None:
        """Estimate the remaining seconds from finished cells; None without any, and at the end."""
        left = self._total - self._done
        if not left or not self._took:
            return None
        return left * sum(self._took) / len(self._took) / min(self._processes, left)

    def close(self) -> None:
        """Restore the terminal."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def say(self, text: str) -> None:
        """Print a line above the live ones."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)
