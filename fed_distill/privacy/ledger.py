"""A merchant's append-only record of the privacy that its releases have cost: one file of JSON lines a merchant.

Charged before it is spent: an entry is on disk before the release that it pays for begins, so a crash can overcharge
and never undercharge. Entries compose over rounds, methods and runs, and a merchant's limit holds for all of them
together, of whatever unit: see ``exposure``.

Each line ends in a check, the SHA-256 of the previous line's check and of the line itself, so that an edited, removed
or moved line is found, and the ledger refused from there on. The newest line is written first into a second file, in a
folder beside the ledgers'. A ledger from which that line is missing is an older copy that somebody has put back, and is
refused too: what was charged since would be forgotten. Only if it is the very next line is it added, as a crash between
both writes leaves it so. What cannot be found is that both files were put back: a merchant who fears that keeps a copy
of the last check elsewhere (``fed-distill ledger verify`` prints it). Files are locked with flock(2).
"""

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fed_distill.errors import BudgetExceeded, LedgerError
from fed_distill.privacy.accounting import DELTA, Accountant, Spend, epsilon, filtered
from fed_distill.privacy.exposure import check_move, exposure_spends
from fed_distill.storage.files import as_file_name, make_folder, space_for, sync_folder, write_atomic

_VERSION = 1
_SUFFIX = ".jsonl"
_LINE = re.compile(rb'(\{.*),"check":"([0-9a-f]{64})"\}')
_SLACK = 1e-9


@dataclass(frozen=True)
class Charge:
    """One private release and what it costs.

    run, arm, seed, round: where it happened. unit: whose presence is hidden: one example of the merchant, one group of
    them, the merchant as a whole, its vote, or by import path a unit of somebody's own. what: the part of the uplink
    that it pays for, such as ``training`` or ``size``. request: hex digest of all that decides the answer; the answer
    to an equal request is the same, noise included. spends: the mechanisms that it runs. delta: the delta at which the
    merchant wants its epsilon. moved_by: of a unit of somebody's own, how far one example moves what is noised
    (``exposure_spends``). Raises ValueError for others.
    """

    run: str
    arm: str
    seed: int
    round: int
    unit: str
    what: str
    request: str
    spends: tuple[Spend, ...]
    delta: float
    moved_by: float | None = None

    def __post_init__(self) -> None:
        check_move(self.unit, self.moved_by)
        if not re.fullmatch(r"[0-9a-f]+", self.request):
            raise ValueError(f"request must be a hex digest, not {self.request!r}")
        if not self.spends:
            raise ValueError("a charge needs at least one spend")
        if not 0.0 < self.delta < 1.0:
            raise ValueError(f"delta must lie between 0 and 1, not {self.delta}")

    def same_release(self, other: "Charge") -> bool:
        """Whether both pay for one and the same answer: all is equal but delta, which changes nothing about it."""
        return self._release() == other._release()

    def _release(self) -> tuple[object, ...]:
        return self.unit, self.run, self.arm, self.seed, self.round, self.what, self.request, self.spends, self.moved_by


@dataclass(frozen=True)
class Entry:
    """A line of a ledger: the charge, whose it is, when (UTC, ISO 8601), and its link in the chain of checks."""

    charge: Charge
    merchant: str
    time: str
    check: str


def composed(charges: Iterable[Charge], delta: float | None = None, accountant: Accountant = "pld") -> float:
    """The epsilon of all ``charges`` together, which must be of one unit; 0 without any.

    At ``delta``, or else at the smallest of the charges' own, so that no later charge makes earlier ones look cheaper.
    """
    mine = tuple(charges)
    if len({charge.unit for charge in mine}) > 1:
        raise ValueError("charges of different privacy units are separate promises and do not compose")
    if not mine:
        return 0.0
    if delta is None:
        delta = min(charge.delta for charge in mine)
    return epsilon([spend for charge in mine for spend in charge.spends], delta, accountant)


def exposure(charges: Iterable[Charge], delta: float | None = None) -> float:
    """The epsilon of all ``charges`` together, of whatever units, for any one example of the merchant; 0 without any.

    A release that hides a whole group or merchant hides each of its examples, and spends their budget too: what it
    costs them is ``exposure_spends``. It is ``filtered``, as how much noise a release gets may depend on what was
    released before. At ``delta``, or else at the smallest of the charges' own and 1e-5: whoever asks for a release must
    not choose a delta by which everything looks cheaper.
    """
    mine = tuple(charges)
    if not mine:
        return 0.0
    if delta is None:
        delta = min(DELTA, *(charge.delta for charge in mine))
    spends = [spend for charge in mine for spend in exposure_spends(charge.unit, charge.spends, charge.moved_by)]
    return filtered(spends, delta)


class Ledger:
    """The ledger of ``merchant`` at ``path``; the file appears with the first charge."""

    def __init__(self, path: Path, merchant: str) -> None:
        self.path = path
        self.merchant = merchant

    def charge(self, charge: Charge, max_epsilon: float | None = None) -> float:
        """Pay for ``charge``; returns the ``exposure`` to all entries.

        When this returns, the entry is on disk and the release may begin. A release that was paid before costs nothing:
        a resumed run neither pays twice nor answers differently. Raises BudgetExceeded, with nothing written, if the
        exposure would rise above ``max_epsilon``; LedgerError if the ledger is torn, edited, an older copy or another
        merchant's; CheckpointError, with the ledger as it was, if the disk is full.
        """
        with space_for(self.path), self._locked():
            entries, content = _recovered(self.path, self.merchant)
            self._check_newest(content)
            charges = [entry.charge for entry in entries]
            delta = min(DELTA, charge.delta, *(former.delta for former in charges))
            spent = exposure(charges, delta)
            if any(former.same_release(charge) for former in charges):
                sync_folder(self.path.parent)  # who wrote it may have been killed just before doing so
                return spent
            total = exposure([*charges, charge], delta)
            if max_epsilon is not None and not total <= max_epsilon + _SLACK:
                raise BudgetExceeded(
                    f"merchant {self.merchant}: budget spent: {charge.what} in round {charge.round} of {charge.run} "
                    f"would raise what one example is exposed to from epsilon {spent:.6g} to {total:.6g}, above the "
                    f"limit of {max_epsilon:.6g} (unit {charge.unit}, delta {delta:.3g})"
                )
            line = _line(charge, self.merchant, entries[-1].check if entries else "")
            make_folder(_newest(self.path).parent)
            write_atomic(_newest(self.path), line, private=True)
            write_atomic(self.path, content + line, private=True)
        return total

    def check(self) -> None:
        """Raise LedgerError unless more may be charged: the ledger is whole, and so is the copy of its newest entry."""
        self._check_newest(_recovered(self.path, self.merchant)[1])

    def _check_newest(self, content: bytes) -> None:
        if content and not _content(_newest(self.path)):
            raise LedgerError(
                f"{self.path} has entries, and the copy of its newest one, {_newest(self.path)}, is gone: whether it "
                "is whole cannot be told, so this merchant must not spend more; put both back"
            )

    def entries(self) -> tuple[Entry, ...]:
        """All entries, oldest first. Raises LedgerError if the ledger is torn, edited, an older copy or another
        merchant's."""
        return _recovered(self.path, self.merchant)[0]

    def epsilon(self, unit: str, delta: float | None = None, accountant: Accountant = "pld") -> float:
        """What has been spent within ``unit``, at ``delta`` or else the smallest of its entries' own; 0 if nothing."""
        charges = (entry.charge for entry in self.entries() if entry.charge.unit == unit)
        return composed(charges, delta, accountant)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the ledger against all other threads and processes; the lock ends with the process that holds it."""
        make_folder(self.path.parent)
        descriptor = os.open(self.path.with_name(f".{self.path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


class Ledgers:
    """The ledgers of many merchants in one folder, a file each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def of(self, merchant: str) -> Ledger:
        """The ledger of ``merchant``, which may have no entries yet."""
        return Ledger(self.folder / f"{as_file_name(merchant)}{_SUFFIX}", merchant)

    def files(self) -> list[Path]:
        """The files of all ledgers that have entries, by name."""
        return sorted(self.folder.glob(f"*{_SUFFIX}"))

    def merchants(self) -> list[str]:
        """Who has a ledger with entries. Raises LedgerError for the first that is torn, edited or misplaced."""
        return sorted(self.read(path)[0].merchant for path in self.files())

    def read(self, path: Path) -> tuple[Entry, ...]:
        """The entries of one of ``files()``. Raises LedgerError too if they belong into another file."""
        for entry in _verified(_content(path), path, None)[:1]:
            proper = self.of(entry.merchant).path.name
            if path.name != proper:
                raise LedgerError(f"{path}: belongs to merchant {entry.merchant}, whose ledger is {proper}")
        return read_ledger(path)


def read_ledger(path: Path) -> tuple[Entry, ...]:
    """The entries of the ledger at ``path``, at least one. Raises LedgerError if it is missing, torn, edited or an
    older copy."""
    entries = _recovered(path, None)[0]
    if not entries:
        raise LedgerError(f"there is no ledger at {path}")
    return entries


def _recovered(path: Path, merchant: str | None) -> tuple[tuple[Entry, ...], bytes]:
    """All entries and the file's bytes, with the newest line, which a crash may have kept out of the file."""
    newest = _content(_newest(path))  # before the ledger: what is charged meanwhile is in the ledger only
    content = _content(path)
    entries = _verified(content, path, merchant)
    if not newest:
        return entries, content
    line, _, rest = newest.partition(b"\n")
    found = _LINE.fullmatch(line)
    if not found or rest:
        raise _damaged(_newest(path), 1, "this is no ledger entry")
    check = found[2].decode()
    if any(entry.check == check for entry in entries):
        return entries, content
    if _check(entries[-1].check if entries else "", found[1] + b"}") == check:
        return _verified(content + newest, path, merchant), content + newest
    raise LedgerError(
        f"{path} is an older copy, or lines were cut off its end: it lacks the newest entry, which is in "
        f"{_newest(path)}. What was charged since would be forgotten, so this merchant must not spend more: put "
        "the newest copy back, or begin with an empty folder of ledgers and a max_epsilon that is lower by what may "
        "have been spent"
    )


def _newest(path: Path) -> Path:
    """The file that holds a ledger's newest line, in a folder beside the ledgers', so that it is not put back with
    them."""
    folder = path.absolute().parent
    return folder.with_name(f"{folder.name}.newest") / f"{path.stem}.line"


def _content(path: Path) -> bytes:
    """The file's bytes; none if there is no file. An empty file is torn: none is ever written."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return b""
    if not content:
        raise _damaged(path, 1, "the file is empty")
    return content


def _verified(content: bytes, path: Path, merchant: str | None) -> tuple[Entry, ...]:
    """All entries, of ``merchant`` alone (None: of the first entry's), each checked against the one before."""
    *lines, rest = content.split(b"\n")
    entries: list[Entry] = []
    for number, line in enumerate(lines, 1):
        entry = _entry(line, path, number, entries[-1].check if entries else "")
        if merchant is None:
            merchant = entry.merchant
        if entry.merchant != merchant:
            raise LedgerError(f"{path}, line {number}: belongs to merchant {entry.merchant}, not to {merchant}")
        entries.append(entry)
    if rest:
        raise _damaged(path, len(lines) + 1, "the line is torn")
    return tuple(entries)


def _entry(line: bytes, path: Path, number: int, previous: str) -> Entry:
    found = _LINE.fullmatch(line)
    if not found:
        raise _damaged(path, number, "this is no ledger entry")
    body, check = found[1] + b"}", found[2].decode()
    if _check(previous, body) != check:
        raise _damaged(path, number, "the check fails: this line was edited, or a line before it removed or moved")
    try:
        fields = json.loads(body)
        if fields.pop("v") != _VERSION:
            raise LedgerError(f"{path}, line {number}: written by another version of fed-distill; use that one")
        merchant, time = fields.pop("merchant"), fields.pop("time")
        spends = tuple(Spend(**spend) for spend in fields.pop("spends"))
        return Entry(Charge(**fields, spends=spends), merchant, time, check)
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, number, f"its check is right and its content is not ({error})") from error


def _line(charge: Charge, merchant: str, previous: str) -> bytes:
    """The entry as canonical JSON (sorted keys, no spaces) with its check at the end."""
    fields: dict[str, Any] = {
        **vars(charge),
        "spends": [
            {
                "noise_multiplier": float(spend.noise_multiplier),
                "sampling_rate": float(spend.sampling_rate),
                "steps": int(spend.steps),
            }
            for spend in charge.spends
        ],
        "v": _VERSION,
        "merchant": merchant,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if charge.moved_by is None:
        del fields["moved_by"]
    body = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    return body[:-1] + f',"check":"{_check(previous, body)}"}}\n'.encode()


def _check(previous: str, body: bytes) -> str:
    return hashlib.sha256(previous.encode() + body).hexdigest()


def _damaged(path: Path, number: int, problem: str) -> LedgerError:
    return LedgerError(f"{path}, line {number}: {problem}; put back a whole copy before this merchant spends more")
