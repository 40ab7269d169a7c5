"""From measured constants to what 10 ... 1,000,000 merchants take: products, and nothing that was tried.

Every figure is a constant times a number of merchants, so that a table can be made again from the file of constants
without measuring; what was tried at size stands in a table of its own.
"""

import math
from collections.abc import Sequence

from experiments.benchmarks.constants import METHODS, NameCost, StudentCost
from experiments.benchmarks.growth import Growth

MERCHANTS = (10, 100, 1_000, 10_000, 100_000, 1_000_000)
SHARE = 0.01
"""Participation in the second half of the tables."""
SITES = 100
"""Sites in the second figure of messages."""


def messages(asked: int, chunk: int, sites: int) -> int:
    """Flower messages of a round at most: one a chunk of consecutive merchants and site that hosts any of them."""
    whole, rest = divmod(asked, chunk)
    return whole * min(chunk, sites) + min(rest, sites)


def asked(merchants: int, share: float) -> int:
    """Merchants of a round."""
    return max(1, round(share * merchants))


def bytes_table(students: Sequence[StudentCost]) -> str:
    """Bytes to and from all merchants in a round, at full and at 1 % participation."""
    columns = [(student, method, share) for student in students for method in METHODS for share in (1.0, SHARE)]
    header = ["merchants", *(f"{one.student}, {method}, {_share(share)}" for one, method, share in columns)]
    rows = []
    for merchants in MERCHANTS:
        cells = [f"{merchants:,}"]
        for student, method, share in columns:
            cost, size = student.methods[method], asked(merchants, share)
            cells.append(f"{volume(size * cost.downlink)} / {volume(size * cost.uplink)}")
        rows.append(cells)
    return table(header, rows)


def work_table(students: Sequence[StudentCost]) -> str:
    """Seconds of one core, memory and messages of a round with every merchant, and disk of personal students."""
    header = ["merchants"]
    for student in students:
        name = student.student
        header += [f"{name}: training", "merging", "testing", "server memory", "messages, 1 site", f"{SITES} sites"]
        header += ["kept by fedmd"]
    rows = []
    for merchants in MERCHANTS:
        cells = [f"{merchants:,}"]
        for student in students:
            cost = student.methods["fedavg-kd"]
            cells += [
                duration(merchants * student.train_seconds),
                duration(merchants * cost.merge_seconds),
                duration(merchants * student.test_seconds),
                volume(server_memory(student, merchants)),
                *(f"{messages(merchants, student.chunk, sites):,}" for sites in (1, SITES)),
                volume(merchants * student.kept_bytes),
            ]
        rows.append(cells)
    return table(header, rows)


def server_memory(student: StudentCost, merchants: int) -> float:
    """Bytes that the server holds for uplinks: a chunk's, as they came and decoded, and float64 sums of the student."""
    cost = student.methods["fedavg-kd"]
    return min(merchants, student.chunk) * (cost.uplink + cost.held) + 2 * student.student_bytes


def names_table(names: NameCost, runs: Sequence[Growth]) -> str:
    """What merchants' names and scores take in messages and files, whatever the student."""
    largest = max(runs, key=lambda one: one.merchants)
    per = {
        "requests of a round": names.request,
        "sites' lists": names.roster,
        "test counts": names.counts,
        "`summary.json`": largest.summary_bytes / largest.merchants,
        "report": largest.report_bytes / largest.merchants,
    }
    rows = [[f"{size:,}", *(volume(size * each) for each in per.values())] for size in MERCHANTS]
    return table(["merchants", *per], rows)


def constants_table(students: Sequence[StudentCost]) -> str:
    """The constants themselves."""
    header = ["of one merchant", *(one.student for one in students)]
    rows = [
        ["the student's weights", *(volume(one.student_bytes) for one in students)],
        ["merchants in a chunk", *(f"{one.chunk:,}" for one in students)],
        *([f"{method}: downlink / uplink", *(_messages(one, method) for one in students)] for method in METHODS),
        *(
            [f"{method}: merging an uplink", *(duration(one.methods[method].merge_seconds) for one in students)]
            for method in METHODS
        ),
        ["training, an epoch", *(duration(one.train_seconds) for one in students)],
        ["testing, 16 examples", *(duration(one.test_seconds) for one in students)],
        ["encoded examples in a site's memory", *(volume(one.encoded_bytes) for one in students)],
        ["student kept on a site's disk (fedmd)", *(volume(one.kept_bytes) for one in students)],
    ]
    return table(header, rows)


def runs_table(runs: Sequence[Growth]) -> str:
    """What was tried."""
    header = ["merchants", "examples", "reading", "the round", "whole run", "a merchant", "peak memory"]
    header += ["`summary.json`", "report", "checkpoint"]
    rows = [
        [
            f"{one.merchants:,}",
            f"{one.examples:,}",
            duration(one.data_seconds),
            duration(one.round_seconds),
            duration(one.seconds),
            duration(one.seconds / one.merchants),
            "–" if one.peak_bytes is None else volume(one.peak_bytes),
            volume(one.summary_bytes),
            volume(one.report_bytes),
            volume(one.checkpoint_bytes),
        ]
        for one in sorted(runs, key=lambda one: one.merchants)
    ]
    return table(header, rows)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, numbers to the right."""
    lines = [header, ["---:"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def volume(value: float) -> str:
    """Bytes with three digits, in powers of 1,000."""
    return _scaled(value, [(1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B")])


def duration(seconds: float) -> str:
    """Seconds with three digits, in the unit that suits."""
    units = [(86_400, "d"), (3600, "h"), (60, "min"), (1, "s"), (1e-3, "ms"), (1e-6, "µs")]
    return _scaled(seconds, units)


def _scaled(value: float, units: Sequence[tuple[float, str]]) -> str:
    size, unit = next(((size, unit) for size, unit in units if value >= size), units[-1])
    scaled = value / size
    digits = max(0, 2 - math.floor(math.log10(scaled))) if scaled >= 1 else 2
    return f"{scaled:.{digits}f} {unit}"


def _messages(student: StudentCost, method: str) -> str:
    cost = student.methods[method]
    return f"{volume(cost.downlink)} / {volume(cost.uplink)}"


def _share(share: float) -> str:
    return "all" if share == 1.0 else f"{100 * share:g} %"
