"""Logs as one JSON object a line, each with where it was said: run, federation, seed, round, site, merchant.

Where that is is kept in a context variable, so that whoever logs need not know it. Lines go to stderr, where systemd
and containers look for them; Flower's own lines are among them, in the same form and once.
"""

import json
import logging
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Literal

from fed_distill.errors import DataError, FedDistillError

Style = Literal["text", "json"]
"""``text`` leaves logging as it is."""
OURS = ("fed_distill",)
"""Loggers whose INFO lines are shown, of all others warnings only."""
FLOWER = "flwr"
"""Logger with a handler of its own, which would show its lines a second time and as plain text."""
ATTACHED = "_observed"
"""Attribute of an error with what was known where it was raised."""

_log = logging.getLogger(__name__)
_NOTHING: Mapping[str, str | int] = MappingProxyType({})
_known: ContextVar[Mapping[str, str | int]] = ContextVar("known", default=_NOTHING)


@contextmanager
def observed(
    *,
    run: str | None = None,
    federation: str | None = None,
    seed: int | None = None,
    round: int | None = None,
    site: str | None = None,
    merchant: str | None = None,
) -> Iterator[None]:
    """Add what is given to all that is logged within, also to the line about an error that leaves it.

    Not for a generator's body: what is known would be the consumer's too.
    """
    given = {"run": run, "federation": federation, "seed": seed, "round": round, "site": site, "merchant": merchant}
    known = {**_known.get(), **{name: value for name, value in given.items() if value is not None}}
    token = _known.set(known)
    try:
        yield
    except BaseException as error:
        vars(error).setdefault(ATTACHED, known)
        raise
    finally:
        _known.reset(token)


def escape_logs() -> None:
    """From now on this process's log shows what a terminal would obey, or what would hide other text, by its escapes,
    and sets the further lines of a message in: what a server says must not look like another line.

    Where names and reasons come from outside, in the process of a site.
    """
    make = logging.getLogRecordFactory()

    def made(*args: Any, **others: Any) -> logging.LogRecord:
        record = make(*args, **others)
        record.msg, record.args = escaped(record.getMessage()), ()
        if record.exc_info and record.exc_info[1] is not None:
            record.exc_text = escaped("".join(traceback.format_exception(record.exc_info[1])).rstrip("\n"))
        return record

    logging.setLogRecordFactory(made)


def escaped(text: str) -> str:
    """``text`` with everything that is not printed by its escape, and its lines after the first set in."""
    shown = (sign if sign.isprintable() or sign == "\n" else sign.encode("unicode_escape").decode() for sign in text)
    return "".join(shown).replace("\n", "\n    ")


class JsonLines(logging.Formatter):
    """A log record as one JSON object without a line break.

    time (UTC, ISO 8601), level, logger, message, then what is ``observed``; ``facts``, mostly numbers, that the record
    was given as ``extra={"facts": ...}``; of an error ``error``, its kind, with its ``reason`` if a user can mend it,
    else its ``trace``. private: for a site's own log, in which no error may quote data: of an unforeseen error, or of
    one about data, only its kind is told, and where it was raised.
    """

    def __init__(self, private: bool = False) -> None:
        super().__init__()
        self.private = private

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        error = record.exc_info[1] if record.exc_info else None
        place = _known.get() if error is None else vars(error).get(ATTACHED, _known.get())
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **place,
        }
        facts = getattr(record, "facts", None)
        if facts:
            line["facts"] = facts
        if error is not None:
            line |= self._told(error)
        written = json.dumps(line, ensure_ascii=False, default=str)
        return "".join(sign if sign.isprintable() else json.dumps(sign)[1:-1] for sign in written)

    def _told(self, error: BaseException) -> dict[str, Any]:
        told: dict[str, Any] = {"error": type(error).__name__}
        if isinstance(error, FedDistillError) and not (self.private and isinstance(error, DataError)):
            return told | {"reason": str(error)}
        if self.private:
            return told | {"trace": "".join(traceback.format_tb(error.__traceback__))}
        return told | {"trace": "".join(traceback.format_exception(error))}


class _Lines(logging.Handler):
    """Writes each record to what is stderr now: a test, or Flower's upload of logs, may put another in its place."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line at once, so that processes that share stderr do not mix theirs; none for an empty message,
        which Flower makes room with."""
        try:
            if not record.getMessage() and not record.exc_info:
                return
            sys.stderr.write(self.format(record) + "\n")
            sys.stderr.flush()
        except Exception:  # logging's own way: it prints what is wrong with a record, and the program goes on
            self.handleError(record)


class _Installed:
    """What JSON lines changed of this process's logging, to change it back."""

    def __init__(self) -> None:
        handler = _Lines(logging.INFO)
        self.lines = JsonLines()
        handler.setFormatter(self.lines)
        self._handler = handler
        root, flower = logging.getLogger(), logging.getLogger(FLOWER)
        root.addHandler(handler)
        self._levels = {name: logging.getLogger(name).level for name in OURS}
        for name in OURS:
            logging.getLogger(name).setLevel(logging.INFO)
        self._consoles = [one for one in flower.handlers if _is_console(one)]
        for console in self._consoles:
            flower.removeHandler(console)
        flower.addHandler(handler)
        self._propagates, flower.propagate = flower.propagate, False
        logging.captureWarnings(True)

    def remove(self) -> None:
        """Leave logging as it was."""
        root, flower = logging.getLogger(), logging.getLogger(FLOWER)
        logging.captureWarnings(False)
        flower.propagate = self._propagates
        flower.removeHandler(self._handler)
        for console in self._consoles:
            flower.addHandler(console)
        for name, level in self._levels.items():
            logging.getLogger(name).setLevel(level)
        root.removeHandler(self._handler)


def _is_console(handler: logging.Handler) -> bool:
    return isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler)


_installed: list[_Installed] = []


def log_as(style: Style, private: bool = False) -> None:
    """Log so from now on in this process; again changes nothing. ``private``: as for ``JsonLines``."""
    if style == "json":
        if not _installed:
            _installed.append(_Installed())
        _installed[0].lines.private |= private


@contextmanager
def logged(style: Style, *, run: str) -> Iterator[None]:
    """Log a run so, its name and an error that ends it included; afterwards logging is as it was."""
    before = bool(_installed)
    log_as(style)
    try:
        with observed(run=run):
            yield
    except Exception as error:
        if _installed:  # in text, whoever runs this prints it once
            _log.error("the run ended by an error", exc_info=error)
        raise
    finally:
        if _installed and not before:
            _installed.pop().remove()
