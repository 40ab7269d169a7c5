"""ProgressBars is readable in a terminal and in a log."""

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from fed_distill.config import Experiment
from fed_distill.reporting.terminal_progress import ProgressBars, round_facts

EXPERIMENT = Experiment(name="trial")


def record(round, rounds=3, **changes):
    return {
        "seed": 0,
        "federation": "fedavg-kd",
        "round": round,
        "rounds": rounds,
        "train_loss": 0.41234,
        "valid": {"auc": 0.9, "ndcg@10": 0.95},
        "merchants": 12,
        "rejected": 0,
        **changes,
    }


@pytest.fixture
def log():
    """ProgressBars into a file, and a function that returns the lines written to it."""
    file = io.StringIO()
    progress = ProgressBars(Console(file=file, force_terminal=False, width=60))
    return progress, lambda: file.getvalue().splitlines()


def test_a_log_says_what_is_run_and_where(log, tmp_path):
    progress, lines = log
    progress.on_start(EXPERIMENT, tmp_path)
    assert lines() == [f"run trial: relevance on marketplace, fedavg-kd; folder {tmp_path}"]


def test_a_log_has_a_plain_line_for_each_stage_round_and_message(log):
    progress, lines = log
    progress.on_stage("seed 0 · fedavg-kd", 3)
    for number in (1, 2, 3):
        progress.on_round(record(number))
    progress.on_message("merchant [b]A[/b] was rejected")
    progress.on_end({})
    facts = "12 merchants · loss 0.4123 · validation nDCG@10 0.9500"
    assert lines() == [
        "seed 0 · fedavg-kd",
        *(f"seed 0 · fedavg-kd: round {number} of 3 · {facts}" for number in (1, 2, 3)),
        "merchant [b]A[/b] was rejected",
    ]


def test_a_log_is_not_flooded_by_steps(log):
    progress, lines = log
    progress.on_stage("teacher", 1000)
    for done in range(1, 1001):
        progress.on_step(done, {"loss": 0.5})
    assert lines()[1:] == [f"teacher: {done} of 1000 · loss 0.5" for done in (250, 500, 750, 1000)]


def test_a_log_hears_of_slow_steps_every_minute():
    file, clock = io.StringIO(), [0.0]
    progress = ProgressBars(Console(file=file, force_terminal=False), now=lambda: clock[0])
    progress.on_stage("teacher", 1000)
    for done in range(1, 14):
        clock[0] += 10.0
        progress.on_step(done, {})
    assert file.getvalue().splitlines() == ["teacher", "teacher: 6 of 1000", "teacher: 12 of 1000"]


def test_a_log_is_not_flooded_by_rounds(log):
    progress, lines = log
    progress.on_stage("fedavg", 200)
    for number in range(1, 201):
        progress.on_round(record(number, rounds=200))
    assert len(lines()) == 1 + 20
    assert "round 200 of 200" in lines()[-1]


def test_steps_of_a_stage_of_unknown_length_are_silent_until_it_is_known(log):
    progress, lines = log
    progress.on_stage("pooled", None)
    progress.on_step(1, {"loss": 0.5})
    assert lines() == ["pooled"]
    progress.on_step(2, {"steps": 4})
    assert lines()[1:] == ["pooled: 2 of 4"]


def test_a_new_stage_begins_from_nothing(log):
    progress, lines = log
    for title in ("a", "b"):
        progress.on_stage(title, 4)
        progress.on_step(4, {})
    assert lines() == ["a", "a: 4 of 4", "b", "b: 4 of 4"]


def test_a_terminal_shows_stages_rounds_and_messages_and_gets_its_cursor_back(tmp_path):
    file = io.StringIO()
    progress = ProgressBars(Console(file=file, force_terminal=True, width=140, _environ={}))
    progress.on_start(EXPERIMENT, tmp_path)
    progress.on_stage("teacher [fine-tuning]", None)
    progress.on_step(5, {"steps": 10.0, "auc": 0.75})
    progress.on_stage("seed 0", 3)
    progress.on_round(record(3))
    progress.on_message("note")
    progress.on_end({})
    shown = file.getvalue()
    assert "teacher [fine-tuning]" in shown and "AUC 0.75" in shown
    assert "3/3" in shown and "nDCG@10 0.9500" in shown
    assert "note" in shown
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1


def test_a_failed_run_gives_the_cursor_back(tmp_path):
    file = io.StringIO()
    progress = ProgressBars(Console(file=file, force_terminal=True, width=140, _environ={}))
    progress.on_start(EXPERIMENT, tmp_path)
    progress.on_stage("seed 0", 3)
    progress.close()
    assert file.getvalue().count("\x1b[?25h") == 1


def test_a_round_tells_of_rejected_merchants_and_of_the_metric_that_there_is():
    assert round_facts(record(1, rejected=2)).startswith("12 merchants · 2 rejected · loss")
    assert round_facts(record(1, valid={"macro_f1": 0.5, "ndcg@10": None})).endswith("macro-F1 0.5000")
    assert round_facts(record(1, valid={}, train_loss=None)) == "12 merchants"


@pytest.mark.parametrize("width", [60, 100])
def test_labels_that_begin_alike_are_whole_in_a_narrow_terminal(width):
    file = io.StringIO()
    progress = ProgressBars(Console(file=file, force_terminal=True, width=width, color_system=None))
    titles = [f"seed 0 · the server's student of the second assistant, distilled with {end}" for end in ("A1", "B2")]
    progress.on_start(EXPERIMENT, Path("runs") / "trial")
    for title in titles:
        progress.on_stage(title, 3)
        progress.on_round(record(1))
    progress.on_end({})
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue())
    assert "…" not in shown
    assert all(end in shown for end in ("A1", "B2"))
