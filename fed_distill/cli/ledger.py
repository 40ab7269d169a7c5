"""``fed-distill ledger``: show the spent privacy budgets of merchants, and verify their ledgers.

The commands are read-only. Slow imports are inside them.
"""

import sys
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fed_distill.errors import LedgerError

if TYPE_CHECKING:
    from fed_distill.privacy.ledger import Entry

ledger_app = typer.Typer(help="Show and verify what merchants have spent of their privacy.", no_args_is_help=True)

Place = Annotated[
    Path, typer.Argument(metavar="FOLDER|FILE", help="folder of ledgers, or one ledger", show_default=False)
]


class Composition(StrEnum):
    """Accountants on the command line."""

    PLD = "pld"
    RDP = "rdp"


@ledger_app.command(epilog="Example: fed-distill ledger show ledgers --merchant acme --accountant rdp")
def show(
    place: Place,
    merchant: Annotated[str | None, typer.Option(help="this merchant only")] = None,
    accountant: Annotated[
        Composition, typer.Option(help="how releases are composed: pld is closer, rdp faster")
    ] = Composition.PLD,
) -> None:
    """Print the epsilon that each merchant has spent, by privacy unit."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("merchant", overflow="fold", min_width=12)  # the only one that is broken in a narrow terminal
    for title in ("unit", "entries", "steps", "epsilon", "delta", "last charge"):
        table.add_column(title, justify="left" if title in ("unit", "last charge") else "right", no_wrap=True)
    for path in _files(place, merchant):
        for cells in _spent(_read(place, path), accountant.value):
            table.add_row(*map(escape, cells))
    Console().print(table)


@ledger_app.command(epilog="Example: fed-distill ledger verify ledgers > checks.txt")
def verify(place: Place, merchant: Annotated[str | None, typer.Option(help="this merchant only")] = None) -> None:
    """Verify every line of every ledger; print the last check, number of lines and merchant of each intact one.

    A copy of the last check, kept elsewhere, detects later removal of lines from the end.
    """
    damaged = []
    for path in _files(place, merchant):
        try:
            entries = _read(place, path)
        except LedgerError as error:
            damaged.append(str(error))
        else:
            sys.stdout.write(f"{entries[-1].check}  {len(entries)}  {entries[-1].merchant}\n")
    if damaged:
        raise LedgerError("\n".join(damaged))


def _files(place: Path, merchant: str | None) -> list[Path]:
    """Return the ledgers at ``place``, a folder or a file, of one merchant or of all; at least one."""
    from fed_distill.privacy.ledger import Ledgers, read_ledger

    if (place / "checkpoint").is_dir():
        raise LedgerError(
            f"{place} is a run's folder: its ledgers are in {place / 'checkpoint' / 'ledgers'}/seed-NUMBER/FEDERATION, "
            "or where its privacy.ledger says"
        )
    ledgers = Ledgers(place)
    if place.is_dir():
        files = ledgers.files() if merchant is None else [ledgers.of(merchant).path]
    else:
        files = [place]
        if merchant is not None and read_ledger(place)[0].merchant != merchant:
            raise LedgerError(f"{place} is not the ledger of merchant {merchant}")
    if not files:
        raise LedgerError(f"there is no ledger in {place}")
    return files


def _read(place: Path, path: Path) -> "tuple[Entry, ...]":
    """Read a ledger; in a folder its file must have the name of its merchant."""
    from fed_distill.privacy.ledger import Ledgers, read_ledger

    return read_ledger(path) if path == place else Ledgers(place).read(path)


def _spent(entries: "Sequence[Entry]", accountant: Literal["pld", "rdp"]) -> Iterator[tuple[str, ...]]:
    """Yield a row of cells for each unit with entries of the merchant."""
    from fed_distill.privacy.ledger import composed

    for unit in dict.fromkeys(entry.charge.unit for entry in entries):
        own = [entry for entry in entries if entry.charge.unit == unit]
        charges = [entry.charge for entry in own]
        steps = sum(spend.steps for charge in charges for spend in charge.spends)
        yield (
            own[0].merchant,
            unit,
            f"{len(own):,}",
            f"{steps:,}",
            f"{composed(charges, None, accountant):.4g}",
            f"{min(charge.delta for charge in charges):.3g}",
            own[-1].time,
        )
