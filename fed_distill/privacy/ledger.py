"""A merchant's append-only record of its private releases and their cost: one file of JSON lines per merchant.

An entry is on disk before the release that it pays for begins, so that a crash can overcharge but never undercharge.
Entries compose over rounds, methods and runs, and a merchant's limit applies to all of them together, over all privacy
units: see ``exposure``.

Each line ends with a check, the SHA-256 of the previous line's check and of the line itself, so that edited, removed or
moved lines are detected and the ledger is rejected. The newest line is first written to a second file, in a folder
beside the ledgers. A ledger without this line is an older copy that was restored, and is rejected too: later charges
would be lost. If only that line is missing it is appended, since a crash between the two writes has this result. The
restoration of both files cannot be detected: to exclude it, keep the last check elsewhere (``fed-distill ledger
verify`` prints it). Files are locked with flock(2).
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
from fed_distill.privacy.exposure import LabelSpend, check_move, exposure_spends, label_epsilon
from fed_distill.storage.files import as_file_name, make_folder, space_for, sync_folder, write_atomic

_VERSION = 1
_SUFFIX = ".jsonl"
_LINE = re.compile(rb'(\{.*),"check":"([0-9a-f]{64})"\}')
_SLACK = 1e-9


@dataclass(frozen=True)
class Charge:
    """One private release and its cost.

    run, arm, seed, round: origin of the release. unit: privacy unit: an example, a group of examples, a merchant, a
    merchant's vote, or a custom unit by import path. what: part of the uplink that it pays for, such as ``training`` or
    ``size``. request: hex digest of all inputs of the answer; equal requests have equal answers, noise included.
    spends: mechanisms of the release. delta: delta for the merchant's epsilon. moved_by: for a custom unit, how far one
    example changes the noised value (``exposure_spends``). label: for randomized labels, which have no spends, their
    cost. Raises ValueError for invalid values.
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
    label: LabelSpend | None = None

    def __post_init__(self) -> None:
        check_move(self.unit, self.moved_by)
        if not re.fullmatch(r"[0-9a-f]+", self.request):
            raise ValueError(f"request must be a hex digest, not {self.request!r}")
        if self.label is not None:
            if self.spends or self.delta:
                raise ValueError("a charge for randomized labels has no other spends, and delta 0")
            return
        if not self.spends:
            raise ValueError("a charge requires at least one spend")
        if not 0.0 < self.delta < 1.0:
            raise ValueError(f"delta must lie between 0 and 1, not {self.delta}")

    def same_release(self, other: "Charge") -> bool:
        """Whether both charges pay for the same answer: all fields but delta are equal."""
        return self._release() == other._release()

    def _release(self) -> tuple[object, ...]:
        named = self.unit, self.run, self.arm, self.seed, self.round, self.what
        return *named, self.request, self.spends, self.moved_by, self.label


@dataclass(frozen=True)
class Entry:
    """A line of a ledger: charge, merchant, time (UTC, ISO 8601) and link in the chain of checks."""

    charge: Charge
    merchant: str
    time: str
    check: str


def composed(charges: Iterable[Charge], delta: float | None = None, accountant: Accountant = "pld") -> float:
    """Return the epsilon of ``charges`` of one unit, composed; 0 without any.

    :param charges: charges of one privacy unit
    :param delta: None for the smallest delta of the charges, so that a later charge never reduces the cost of earlier
        ones
    :param accountant: ``pld`` or ``rdp``
    :raises ValueError: the charges have different units
    """
    mine = tuple(charges)
    if len({charge.unit for charge in mine}) > 1:
        raise ValueError("charges of different privacy units are separate guarantees and cannot be composed")
    spends = [spend for charge in mine for spend in charge.spends]
    labels = label_epsilon(_label_spends(mine))
    if not spends:
        return labels
    if delta is None:
        delta = min(charge.delta for charge in mine if charge.spends)
    return labels + epsilon(spends, delta, accountant)


def exposure(charges: Iterable[Charge], delta: float | None = None) -> float:
    """Return the epsilon of all ``charges``, of any units, for any one example of the merchant; 0 without any.

    A release that hides a group or merchant consumes the budget of each of its examples: see ``exposure_spends``. The
    composition is ``filtered``, because the noise of a release may depend on earlier releases.

    Randomized labels hide the label of an example and not its presence. With such a charge, the result is for the label
    of an example instead, under a change of this label (see ``exposure_spends``), and the epsilons of the label are
    added: they bound the privacy loss on every path, and so its Rényi divergences of every order.

    :param charges: charges of any units
    :param delta: None for the minimum of 1e-5 and the charges' deltas, so that a requester cannot reduce the cost by
        its choice of delta
    """
    mine = tuple(charges)
    noised, labels = [charge for charge in mine if charge.spends], _label_spends(mine)
    if not noised:
        return label_epsilon(labels)
    if delta is None:
        delta = _least_delta(noised)
    spends = [
        spend
        for charge in noised
        for spend in exposure_spends(charge.unit, charge.spends, charge.moved_by, of_label=bool(labels))
    ]
    return filtered(spends, delta) + label_epsilon(labels)


def _label_spends(charges: Iterable[Charge]) -> list[LabelSpend]:
    """Return the cost of each release of randomized labels, once for all arms and runs that use it."""
    return list({(one.request, one.label): one.label for one in charges if one.label is not None}.values())


def _least_delta(charges: Iterable[Charge]) -> float:
    """Return the minimum of 1e-5 and the deltas of all charges with noise."""
    return min([DELTA, *(charge.delta for charge in charges if charge.spends)])


class Ledger:
    """The ledger of ``merchant`` at ``path``; the file is created by the first charge."""

    def __init__(self, path: Path, merchant: str) -> None:
        self.path = path
        self.merchant = merchant

    def charge(self, charge: Charge, max_epsilon: float | None = None) -> float:
        """Record ``charge`` and return the ``exposure`` of all entries.

        The entry is on disk when this returns, and the release may begin. A release that was charged before is free, so
        that a resumed run neither pays twice nor answers differently.

        :param charge: the release
        :param max_epsilon: limit on the exposure
        :raises BudgetExceeded: the exposure would exceed ``max_epsilon``; nothing is written
        :raises LedgerError: the ledger is damaged, an older copy or of another merchant
        :raises CheckpointError: the disk is full; the ledger is unchanged
        """
        with space_for(self.path), self._locked():
            entries, content = _recovered(self.path, self.merchant)
            self._check_newest(content)
            charges = [entry.charge for entry in entries]
            delta = _least_delta([charge, *charges])
            spent = exposure(charges, delta)
            if any(former.same_release(charge) for former in charges):
                sync_folder(self.path.parent)  # the writer may have been killed before this step
                return spent
            total = exposure([*charges, charge], delta)
            if max_epsilon is not None and not total <= max_epsilon + _SLACK:
                raise BudgetExceeded(
                    f"merchant {self.merchant}: budget exceeded: {charge.what} in round {charge.round} of {charge.run} "
                    f"would increase the exposure of one example from epsilon {spent:.6g} to {total:.6g}, above the "
                    f"limit of {max_epsilon:.6g} (unit {charge.unit}, delta {delta:.3g})"
                )
            line = _line(charge, self.merchant, entries[-1].check if entries else "")
            make_folder(_newest(self.path).parent)
            write_atomic(_newest(self.path), line, private=True)
            write_atomic(self.path, content + line, private=True)
        return total

    def check(self) -> None:
        """Raise LedgerError unless the ledger and the copy of its newest entry are intact."""
        self._check_newest(_recovered(self.path, self.merchant)[1])

    def _check_newest(self, content: bytes) -> None:
        if content and not _content(_newest(self.path)):
            raise LedgerError(
                f"{self.path} has entries, but the copy of its newest one, {_newest(self.path)}, is missing, so the "
                "ledger cannot be verified: restore the newest copy of both before this merchant spends more"
            )

    def entries(self) -> tuple[Entry, ...]:
        """Return all entries, oldest first; raise LedgerError if the ledger is damaged, an older copy or of another
        merchant."""
        return _recovered(self.path, self.merchant)[0]

    def epsilon(self, unit: str, delta: float | None = None, accountant: Accountant = "pld") -> float:
        """Return the epsilon spent for ``unit``, at ``delta`` or the smallest delta of its entries; 0 without any."""
        charges = (entry.charge for entry in self.entries() if entry.charge.unit == unit)
        return composed(charges, delta, accountant)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Lock the ledger for all other threads and processes; the lock is released when its process ends."""
        make_folder(self.path.parent)
        descriptor = os.open(self.path.with_name(f".{self.path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


class Ledgers:
    """The ledgers of many merchants in one folder, one file each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def of(self, merchant: str) -> Ledger:
        """Return the ledger of ``merchant``, which may be empty."""
        return Ledger(self.folder / f"{as_file_name(merchant)}{_SUFFIX}", merchant)

    def files(self) -> list[Path]:
        """Return the files of all ledgers with entries, sorted by name."""
        return sorted(self.folder.glob(f"*{_SUFFIX}"))

    def merchants(self) -> list[str]:
        """Return the merchants with entries; raise LedgerError for the first damaged or misplaced ledger."""
        return sorted(self.read(path)[0].merchant for path in self.files())

    def read(self, path: Path) -> tuple[Entry, ...]:
        """Return the entries of one of ``files()``; raise LedgerError if it is damaged or misplaced."""
        for entry in _verified(_content(path), path, None)[:1]:
            proper = self.of(entry.merchant).path.name
            if path.name != proper:
                raise LedgerError(f"{path}: belongs to merchant {entry.merchant}; move it to {proper}")
        return read_ledger(path)


def read_ledger(path: Path) -> tuple[Entry, ...]:
    """Return the entries of the ledger at ``path``, at least one; raise LedgerError if it is missing, damaged or an
    older copy."""
    entries = _recovered(path, None)[0]
    if not entries:
        raise LedgerError(f"there is no ledger at {path}")
    return entries


def _recovered(path: Path, merchant: str | None) -> tuple[tuple[Entry, ...], bytes]:
    """Return all entries and the file's content, including a newest line that a crash kept out of the file."""
    newest = _content(_newest(path))  # before the ledger, which may grow meanwhile
    content = _content(path)
    entries = _verified(content, path, merchant)
    if not newest:
        return entries, content
    line, _, rest = newest.partition(b"\n")
    found = _LINE.fullmatch(line)
    if not found or rest:
        raise _damaged(_newest(path), 1, "this is not a ledger entry")
    check = found[2].decode()
    if any(entry.check == check for entry in entries):
        return entries, content
    if _check(entries[-1].check if entries else "", found[1] + b"}") == check:
        return _verified(content + newest, path, merchant), content + newest
    raise LedgerError(
        f"{path} is an older copy or was truncated: it lacks the newest entry, which is in "
        f"{_newest(path)}. This merchant must not spend more, because later charges would be lost: restore "
        "the newest copy, or start with an empty folder of ledgers and reduce max_epsilon by what may "
        "have been spent"
    )


def _newest(path: Path) -> Path:
    """Return the file of a ledger's newest line, in a folder beside the ledgers, so that it is not restored with
    them."""
    folder = path.absolute().parent
    return folder.with_name(f"{folder.name}.newest") / f"{path.stem}.line"


def _content(path: Path) -> bytes:
    """Return the file's content, or b"" if it does not exist; an existing file is never empty unless damaged."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return b""
    if not content:
        raise _damaged(path, 1, "the file is empty")
    return content


def _verified(content: bytes, path: Path, merchant: str | None) -> tuple[Entry, ...]:
    """Verify and return all entries, which must belong to ``merchant``, or if None to one merchant."""
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
        raise _damaged(path, len(lines) + 1, "the line is incomplete")
    return tuple(entries)


def _entry(line: bytes, path: Path, number: int, previous: str) -> Entry:
    found = _LINE.fullmatch(line)
    if not found:
        raise _damaged(path, number, "this is not a ledger entry")
    body, check = found[1] + b"}", found[2].decode()
    if _check(previous, body) != check:
        raise _damaged(path, number, "the check fails: this line was edited, or an earlier line was removed or moved")
    try:
        fields = json.loads(body)
        if fields.pop("v") != _VERSION:
            raise LedgerError(f"{path}, line {number}: written by another version of fed-distill; use that version")
        merchant, time = fields.pop("merchant"), fields.pop("time")
        spends = tuple(Spend(**spend) for spend in fields.pop("spends"))
        label = LabelSpend(**fields.pop("label")) if "label" in fields else None
        return Entry(Charge(**fields, spends=spends, label=label), merchant, time, check)
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, number, f"its check is valid but its content is not ({error})") from error


def _line(charge: Charge, merchant: str, previous: str) -> bytes:
    """Serialize an entry as canonical JSON (sorted keys, no spaces) with its check at the end."""
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
    if charge.label is None:
        del fields["label"]
    else:
        fields["label"] = {"epsilon": float(charge.label.epsilon), "part": int(charge.label.part)}
    body = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    return body[:-1] + f',"check":"{_check(previous, body)}"}}\n'.encode()


def _check(previous: str, body: bytes) -> str:
    return hashlib.sha256(previous.encode() + body).hexdigest()


def _damaged(path: Path, number: int, problem: str) -> LedgerError:
    return LedgerError(f"{path}, line {number}: {problem}; restore an intact copy before this merchant spends more")
