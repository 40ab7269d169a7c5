"""The terminal says how many cells are done, what became of each, how long the rest will take, and why it waits."""

import io

import pytest
from rich.console import Console

from fed_distill.sweeps.cells import expand
from fed_distill.sweeps.progress import SweepProgress


@pytest.fixture
def follow(study):
    """A function (live terminal?) -> progress, what it wrote, a clock that can be set, three cells."""

    def make(live):
        text, now = io.StringIO(), [0.0]
        console = Console(file=text, force_terminal=live, width=160, color_system=None)
        return SweepProgress(console, lambda: now[0]), text, now, expand(study)[:3]

    return make


def lived(progress, now, cells):
    """Four cells of which one was there: the second takes 10 s, the third 20 s and fails."""
    progress.on_begin(4, 1, 2)
    progress.on_start(cells[1], again=False)
    progress.on_event(cells[1], "round 1 of 5")
    now[0] = 10.0
    progress.on_finish(cells[1], None)
    progress.on_start(cells[2], again=True)
    progress.on_wait(3_000_000_000, 2_000_000_000)
    progress.on_wait(3_000_000_000, 2_000_000_000)
    now[0] = 30.0
    progress.on_finish(cells[2], "no label")


def test_plain_lines_tell_the_same_story(follow):
    progress, text, now, cells = follow(live=False)
    lived(progress, now, cells)
    assert text.getvalue().replace("\u202f", " ").splitlines() == [
        "4 cells, 1 of them finished before; at most 2 at a time",
        f"starts {cells[1].title}",
        f"2 of 4: {cells[1].title} in 10 s; about 10 s left",
        f"resumes {cells[2].title}",
        "waits for memory: another cell may need 3 GB, 2 GB are available",
        f"3 of 4: {cells[2].title} FAILED: no label; about 15 s left",
    ]


def test_a_live_terminal_shows_the_study_and_its_cells_and_is_given_back(follow):
    progress, text, now, cells = follow(live=True)
    lived(progress, now, cells)
    progress.close()
    shown = text.getvalue().replace("\u202f", " ")
    assert "about 15 s left" in shown
    assert "3/4" in shown
    assert shown.endswith("\x1b[?25h")  # the cursor is visible again


def test_the_time_left_is_known_from_the_first_cell_that_ends_to_the_last(follow):
    progress, _, now, cells = follow(live=False)
    progress.on_begin(2, 0, 1)
    left = [progress.time_left()]
    for number, cell in enumerate(cells[:2], 1):
        progress.on_start(cell, again=False)
        now[0] = 5.0 * number
        progress.on_finish(cell, None)
        left.append(progress.time_left())
    assert left == [None, 5.0, None]
