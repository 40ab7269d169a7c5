"""The benchmark: one workload for all, a counted step, and a table from an attempt in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from experiments.benchmarks import chart, ours, run, watch
from experiments.benchmarks.ceiling import step_flops
from experiments.benchmarks.contenders import Clock, Contender, Settings
from experiments.benchmarks.plain import train
from experiments.benchmarks.results import FAILED, NOT_INSTALLED, OK, Attempt, append, read, table
from experiments.benchmarks.watch import Sample, sample
from experiments.benchmarks.workload import Cohort, Workload
from fed_distill.errors import ConfigError

MERCHANTS, TEXTS = 2, 20


def opened(folder: Path, **changes: object) -> Cohort:
    Workload(**{"merchants": MERCHANTS, "texts": TEXTS, **changes}).prepare(folder)
    return Cohort.open(folder)


def measured(contender: str, *round_seconds: float, **changes: object) -> Attempt:
    """An attempt at 10 merchants of 32 texts, 20 steps of 1,000 operations on a machine of 100,000 a second."""
    fields = {
        "workload": {"student": "bert-mini", "merchants": 10, "texts": 32, "uneven": False},
        "steps": 20,
        "status": OK,
        "step_flops": 1000,
        "round_seconds": round_seconds,
        "startup_seconds": 3.0,
        "peak_bytes": 100 * 2**20,
        "ceiling": 100_000.0,
        "others": 0.0,
        "loss_before": 1.5,
        "loss_after": 1.25,
        "settings": {"threads": 2, "device": "cpu"},
    }
    return Attempt(contender, **{**fields, **changes})


@pytest.mark.parametrize("student", ["bert-mini", "two-tower"])
def test_the_same_seed_gives_every_contender_the_same_bytes(tmp_path, student):
    for folder, seed in (("first", 0), ("again", 0), ("other", 1)):
        opened(tmp_path / folder, student=student, seed=seed)
    files = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert len(files) == {"bert-mini": 3, "two-tower": 4}[student]
    same = {
        name: (tmp_path / "first" / name).read_bytes() == (tmp_path / "again" / name).read_bytes() for name in files
    }
    other = {
        name: (tmp_path / "first" / name).read_bytes() == (tmp_path / "other" / name).read_bytes() for name in files
    }
    assert all(same.values())
    assert not any(other.values())


@pytest.mark.parametrize(
    ("student", "contender"),
    [("two-tower", ours.train), ("bert-mini", ours.train)],
)
def test_our_trainers_do_the_plain_loops_work(tmp_path, student, contender, distance):
    """With one batch a merchant its order does not matter, and all must end with the same weights."""
    cohort = opened(tmp_path, student=student, texts=16, length=16, learning_rate=1e-4)
    ends = []
    for train_round in (train, contender):
        clock = Clock("cpu")
        train_round(cohort, Settings(rounds=1, threads=1), clock)
        ends.append(clock.weights())
    started = cohort.workload.new_student().state_dict()
    ours_moved, plain_moved = ({k: v - started[k] for k, v in end.items()} for end in reversed(ends))
    assert distance(plain_moved, {name: torch.zeros_like(value) for name, value in plain_moved.items()}) > 1.0
    assert distance(ours_moved, plain_moved) < 1e-2


def test_token_students_get_examples_of_exactly_the_asked_length(tmp_path):
    cohort = opened(tmp_path, length=24)
    assert [shop.encoded["input_ids"].shape for shop in cohort.shops] == [(TEXTS, 24)] * MERCHANTS
    assert all(shop.encoded["input_ids"].ne(0).all() for shop in cohort.shops)


def test_uneven_merchants_differ_in_size_and_sum_to_the_same_number_of_examples():
    even, uneven = Workload(merchants=200), Workload(merchants=200, uneven=True)
    assert even.sizes() == [64] * 200
    assert even.steps() == 200 * 4
    sizes = uneven.sizes()
    assert sum(sizes) == 200 * 64
    assert min(sizes) >= 1
    assert max(sizes) > 5 * 64
    assert uneven.steps() == sum(size // 16 + (size % 16 > 0) for size in sizes)


def test_a_workload_without_merchants_is_refused():
    with pytest.raises(ConfigError, match="merchants of at least 1"):
        Workload(merchants=0)


def test_a_step_of_bert_mini_has_the_operations_of_its_matrix_products(tmp_path):
    batch, length, width, layers, classes = 16, 32, 128, 2, 4
    projections = 2 * length * width * (4 + 2 * 4) * width  # query, key, value, output, and two of four times the width
    attention = 2 * 2 * length * length * width
    pooled = 2 * width * width + 2 * width * classes
    forward = batch * (layers * (projections + attention) + pooled)
    assert step_flops(opened(tmp_path)) == pytest.approx(3 * forward, rel=0.05)


def test_an_lstm_keeps_its_products_visible_to_the_counter(tmp_path):
    batch, length, width = 16, 32, 64
    forward = batch * length * 2 * 2 * (2 * width) * (4 * width)  # two directions, input and state to four gates
    assert step_flops(opened(tmp_path, student="lstm")) == pytest.approx(3 * forward, rel=0.05)


def test_the_plain_loop_averages_what_each_merchant_reaches_alone(tmp_path):
    cohort = opened(tmp_path, student="two-tower", uneven=True)
    clock = Clock("cpu")
    train(cohort, Settings(rounds=1, threads=1), clock)
    expected = {}
    for shop in cohort.shops:
        alone = cohort.workload.new_student()
        optimizer = torch.optim.AdamW(alone.parameters(), lr=1e-3, weight_decay=0.0, foreach=False)
        for start in range(0, len(shop), 16):
            rows = slice(start, start + 16)
            F.cross_entropy(
                alone({name: values[rows] for name, values in shop.encoded.items()}).logits, shop.labels[rows]
            ).backward()
            optimizer.step()
            optimizer.zero_grad()
        for name, value in alone.state_dict().items():
            expected[name] = expected.get(name, 0) + value * len(shop) / (MERCHANTS * TEXTS)
    for name, value in clock.weights().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)


def test_a_tiny_run_trains_and_prints_a_table(tmp_path, capsys):
    arguments = ["--merchants", str(MERCHANTS), "--texts", "8", "--contenders", "plain", "--threads", "1"]
    assert run.main([*arguments, "--rounds", "1", "--repeats", "1", "--output", str(tmp_path)]) == 0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| plain PyTorch loop")]
    (attempt,) = read(tmp_path / "results.jsonl")
    assert row.split(" | ")[4] == "1.00"
    assert attempt.status == OK
    assert attempt.steps == MERCHANTS
    assert attempt.loss_after < attempt.loss_before
    assert len(attempt.round_seconds) == 1
    assert attempt.step_flops and attempt.ceiling and attempt.startup_seconds


def test_a_row_holds_medians_and_the_range_over_attempts():
    attempts = [measured("plain", 1.0, 3.0, 2.0), measured("plain", 4.0), measured("plain", 2.5), measured("pfl", 5.0)]
    plain, pfl = table(attempts).splitlines()[2:]
    cells = [cell.strip() for cell in plain.strip("|").split("|")]
    # rounds of 2, 4 and 2.5 s, median 2.5: 10 merchants, 20 steps of 1,000 operations at 100,000 a second
    assert cells == [
        "plain PyTorch loop",
        "4 (2.5–5)",
        "8",
        "128",
        "1.00",
        "100 MiB",
        "8 %",
        "3.0 s",
        "–",
        "1.5000 → 1.2500",
        "0.00",
    ]
    assert pfl.split("|")[5].strip() == "0.50"


def test_attempts_that_others_disturbed_count_only_where_there_is_no_better():
    attempts = [measured("plain", 2.0), measured("plain", 8.0, others=0.5), measured("pfl", 8.0, others=0.5)]
    plain, pfl = ([cell.strip() for cell in row.split("|")] for row in table(attempts).splitlines()[2:])
    assert plain[2] == "5 (5–5)"
    assert (pfl[2], pfl[5], pfl[-2]) == ("1.25 (1.25–1.25)", "0.25", "0.50")


def test_what_is_not_installed_or_failed_keeps_its_row():
    nothing = {"round_seconds": (), "ceiling": None}
    attempts = [
        measured("plain", 1.0),
        measured("pfl", status=NOT_INSTALLED, detail="pip install it", **nothing),
        measured("flower", status=FAILED, detail="no room", **nothing),
    ]
    rows = table(attempts).splitlines()[2:]
    assert [row.split("|")[2].strip() for row in rows[1:]] == ["not installed: pip install it", "failed: no room"]


def test_a_module_that_an_interpreter_lacks_is_named():
    contender = Contender("mine", "Mine", "nowhere:train", needs=("torch", "no_such_simulator"))
    assert contender.missing(sys.executable) == ["no_such_simulator"]


def test_memory_is_that_of_the_whole_tree():
    held = 50 * 2**20
    child = f"block = bytearray({held}); print('ready', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", child], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        alone, here = sample(process.pid), sample(os.getpid())
        process.communicate(b"\n")
    assert alone.memory > held
    assert here.memory > alone.memory


@pytest.fixture
def processes(tmp_path, monkeypatch):
    """A function that writes a ``/proc``: the machine's ticks, and (parent, ticks by kind, kB) of each process."""
    monkeypatch.setattr(watch, "_PROC", tmp_path)
    monkeypatch.setattr(watch, "_TICKS", 100)

    def write(machine, **trees):
        (tmp_path / "stat").write_text(f"cpu  {' '.join(map(str, machine))}\ncpu0 1 2 3\n")
        for number, (parent, ticks, size) in trees.items():
            fields = ["S", parent, *[0] * 9, *ticks, *[0] * 6, 10**6]  # proc(5), from the third field on
            path = tmp_path / number.removeprefix("p") / "stat"
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"{number} (a (name) of words) {' '.join(map(str, fields))}\n")
            rollup = f"55e0-7ffe ---p 0000 00:00 0   [rollup]\nRss:  999 kB\nPss:  {size} kB\nPss_Dirty:  1 kB\n"
            path.with_name("smaps_rollup").write_text(rollup)

    return write


def test_seconds_are_those_of_a_tree_and_of_all_that_the_machine_was_not_idle(processes):
    """utime, stime and those of children that ended; of the machine all but idle and iowait, and no guest twice."""
    processes(
        (1000, 20, 300, 90_000, 7000, 4, 5, 6, 800, 900),
        p10=(1, (100, 50, 30, 20), 10),
        p11=(10, (7, 3, 0, 0), 5),
        p12=(11, (1, 0, 0, 0), 1),
        p20=(1, (500, 500, 500, 500), 1000),
    )
    seen = sample(10)
    assert (seen.tree_seconds, seen.memory) == (2.11, 16 * 1024)
    assert seen.machine_seconds == 13.35
    assert sample(12).tree_seconds == 0.01
    assert sample(99) is None


def test_others_are_what_the_machine_did_and_the_tree_did_not(processes):
    processes((0, 0, 0, 0, 0, 0, 0, 0), p10=(1, (0, 0, 0, 0), 10))
    watching = watch.Watch(10, interval=1000.0)
    watching.close()
    watching._samples = [Sample(0.0, 40, 1.0, 10.0), Sample(2.0, 60, 3.0, 15.0), Sample(4.0, 50, 4.0, 19.0)]
    assert watching.others(0.0, 4.0) == (9.0 - 3.0) / 4.0
    assert watching.others(2.0, 4.0) == (4.0 - 1.0) / 2.0
    assert watching.others(3.0, 4.0) is None
    assert (watching.peak(1.0), watching.peak(4.0), watching.peak(-1.0)) == (40, 60, None)


def test_the_chart_is_drawn_again_from_its_lines(tmp_path, capsys):
    for merchants in (16, 64):
        workload = {"student": "bert-mini", "merchants": merchants, "texts": 32, "uneven": False}
        append(tmp_path / "results.jsonl", measured("plain", merchants * 0.25, workload=workload))
    append(tmp_path / "results.jsonl", measured("pfl", status=FAILED, round_seconds=()))
    assert chart.costs(read(tmp_path / "results.jsonl")[:2]) == {"plain": {16: [250.0], 64: [250.0]}}
    assert chart.main([str(tmp_path / "results.jsonl")]) == 0
    files = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert [file.suffix for file in files] == [".svg", ".png"]
    assert all(file.stat().st_size > 1000 for file in files)
    assert json.loads((tmp_path / "results.jsonl").read_text().splitlines()[0])["steps"] == 20
