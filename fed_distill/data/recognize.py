"""Recognize what a user's table holds: the task, the columns by role and the meaning of the labels.

Columns are chosen by their names, in several languages, and by their content. What nothing in the file settles is
listed as a doubt, with the option that decides it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from fed_distill.data.column_words import fits
from fed_distill.data.label_meaning import (
    BY_NAME,
    Meaning,
    check_classes,
    grades,
    named_meanings,
    scale_of,
    sentiments,
    sides,
    unclear,
    without_class,
)
from fed_distill.data.language import ascii_share, surely_english
from fed_distill.data.table_file import column_names, read_columns
from fed_distill.data.tasks import MATCHING, RECOMMEND, label_text
from fed_distill.errors import ConfigError, DataError

ROLES = ("text", "pair", "label", "merchant")
MOST_CLASSES = 500
_MOST_COLUMNS = 500
_COMPARED = 20_000
"""Rows that the words of pairs are compared in."""
_MOST_CONTRADICTED = 0.1
"""Share of rows that may have a text with another label before it cannot be all that the label belongs to."""
_LONG = 25.0
"""Mean characters from which on a text is a sentence rather than a name."""
PAIRED, SINGLE = ("relevance", "recommend", "matching"), ("sentiment", "category", "faq")


@dataclass(frozen=True)
class ColumnContent:
    """A column's values as texts."""

    name: str
    values: Sequence[str]

    @cached_property
    def counts(self) -> Counter[str]:
        """Number of rows by value, without empty ones."""
        return Counter(value for value in self.values if value)

    @cached_property
    def filled(self) -> int:
        """Number of rows with a value."""
        return sum(self.counts.values())

    @property
    def length(self) -> float:
        """Mean number of characters."""
        return sum(len(value) * count for value, count in self.counts.items()) / max(1, self.filled)

    @property
    def is_text(self) -> bool:
        """Whether most values have letters, and there are several; queries are repeated, as labels are."""
        lettered = sum(count for value, count in self.counts.items() if any(one.isalpha() for one in value))
        return len(self.counts) > 2 and lettered > 0.8 * self.filled

    @property
    def is_class(self) -> bool:
        """Whether few distinct, short values are repeated often, as those of labels and merchants are."""
        return 2 <= len(self.counts) <= min(MOST_CLASSES, self.filled / 4) and self.length < _LONG

    @property
    def repeats(self) -> bool:
        """Whether values occur twice or more, on average, and not all are equal."""
        return 2 <= len(self.counts) <= self.filled / 2


@dataclass(frozen=True)
class Recognized:
    """What a table holds.

    task: name of the task. columns: column name by role. labels: class by label, for tasks with fixed classes.
    rows: number of rows. sizes: rows by merchant; empty without a merchant column. found: rows by label. ascii_share:
    share of the texts' letters that are ASCII. english: whether the texts are surely English. why: how labels were
    understood. doubts: what the file does not settle.
    """

    path: Path
    task: str
    columns: Mapping[str, str]
    labels: Mapping[str, str]
    rows: int
    sizes: Mapping[str, int]
    found: Mapping[str, int]
    ascii_share: float = 1.0
    english: bool = False
    why: str = ""
    encoding: str = ""
    doubts: Sequence[str] = field(default_factory=tuple)

    @property
    def dropped(self) -> dict[str, int]:
        """Rows by label that has no class."""
        return without_class(self.found, self.labels, self.task)


def recognize(
    path: Path, given: Mapping[str, str], task: str = "", encoding: str = "", meanings: Sequence[str] = ()
) -> Recognized:
    """Read a table and return what it holds.

    :param given: columns by role that the user has named
    :param task: task that the user has named; empty: it is chosen
    :param encoding: of a text file that is in neither UTF-8 nor UTF-16
    :param meanings: classes of labels that the user has named, as ``LABEL=CLASS``
    :raises ConfigError: a column, label or class that the user has named does not exist
    :raises DataError: the file cannot be read, has no header, or has no text or no label
    """
    names = [name for name in column_names(path, encoding) if name]
    if len(names) > _MOST_COLUMNS:
        raise DataError(f"{path} has {len(names):,} columns: keep at most {_MOST_COLUMNS}, those of texts and labels")
    for role, name in given.items():
        if name not in names:
            raise ConfigError(f"--{role} {name}: {path} has no such column; it has: {', '.join(names)}")
    if len(names) < 2:
        raise DataError(
            f"{path} has one column{f', {names[0]!r}' if names else ''}: training requires a text and its label in two "
            "columns, separated by comma, semicolon, tab or vertical bar: add the labels"
        )
    read = read_columns(path, names, encoding=encoding)
    columns = {name: ColumnContent(name, [label_text(value) for value in values]) for name, values in read.items()}
    columns = {name: columns[name] for name in names}
    _check_header(path, columns)
    doubts: list[str] = []
    chosen = dict(given)
    label = _label(path, columns, chosen, task, doubts)
    chosen["label"] = label.name
    _choose_merchant(columns, chosen)
    _choose_texts(path, columns, chosen, task, doubts)
    named = named_meanings(meanings, label.counts)
    meaning, task = _task(columns, chosen, task, named, doubts)
    check_classes(named, task)
    if "merchant" not in chosen:
        _mention_merchants(columns, chosen, doubts)
    texts = columns[chosen["text"]].values
    return Recognized(
        path,
        task,
        {role: chosen[role] for role in ROLES if role in chosen},
        {**({} if meaning is None else meaning.labels), **named},
        len(label.values),
        dict(columns[chosen["merchant"]].counts) if "merchant" in chosen else {},
        Counter(label.values),
        ascii_share(texts),
        surely_english(texts),
        "" if meaning is None else meaning.why,
        encoding,
        tuple(doubts),
    )


def _check_header(path: Path, columns: Mapping[str, ColumnContent]) -> None:
    """Raise DataError if the columns' names look like a first row: a number above numbers, or a frequent value."""
    for name, column in columns.items():
        number = name.replace(".", "", 1).isdecimal()
        if (number and scale_of(column.counts) is not None) or (column.is_class and name in column.counts):
            row = ", ".join(columns)
            raise DataError(
                f"{path} seems to have no header: its first line is {row[:80]!r}, and {name!r} is a value of that "
                "column: add a first line with the names of the columns, such as text,label"
            )


def _best(columns: Mapping[str, ColumnContent], roles: Sequence[str]) -> list[str]:
    """Return the columns whose names fit one of ``roles``, the best first; an earlier role is better."""
    scored = {
        name: max((fits(name, role) * 10 - place for place, role in enumerate(roles) if fits(name, role)), default=0)
        for name in columns
    }
    return sorted((name for name, score in scored.items() if score), key=lambda name: -scored[name])


def _label(
    path: Path, columns: Mapping[str, ColumnContent], given: Mapping[str, str], task: str, doubts: list[str]
) -> ColumnContent:
    if "label" in given:
        return columns[given["label"]]
    free = {name: one for name, one in columns.items() if name not in given.values() and one.is_class}
    roles = ("class", "label", "stars") if task in ("category", "faq") else ("label", "stars", "class")
    named = _best(free, roles)
    unnamed = [
        name
        for name in sorted(free, key=lambda name: len(free[name].counts))
        if not fits(name, "merchant") and not fits(name, "identifier") and not named
    ]
    candidates = [*named, *unnamed]
    if not candidates:
        raise DataError(
            f"{path}: no column holds labels, which are few values that are repeated; the columns are "
            f"{', '.join(columns)}: name the column with --label NAME"
        )
    if len(candidates) > 1 or not named:
        others = ", ".join(candidates[1:4])
        doubts.append(
            f"the label is column {candidates[0]!r}"
            + (f", not {others}" if others else "")
            + "; otherwise: --label NAME"
        )
    return columns[candidates[0]]


def _choose_merchant(columns: Mapping[str, ColumnContent], chosen: dict[str, str]) -> None:
    free = {name: one for name, one in columns.items() if name not in chosen.values() and one.repeats}
    named = _best(free, ("merchant",))
    if named and "merchant" not in chosen:
        chosen["merchant"] = named[0]


def _mention_merchants(columns: Mapping[str, ColumnContent], chosen: Mapping[str, str], doubts: list[str]) -> None:
    one_value = {name: one for name, one in columns.items() if name not in chosen.values() and len(one.counts) == 1}
    if alone := _best(one_value, ("merchant",)):
        doubts.append(f"column {alone[0]!r} names one merchant only: rows are dealt out to several invented ones")
        return
    names = [name for name, one in columns.items() if name not in chosen.values() and one.repeats]
    hint = f"; could it be {', '.join(names[:3])}?" if names else ""
    doubts.append(
        f"no column names the merchants, so that rows are dealt out to invented ones{hint} Name it with --merchant NAME"
        if names
        else "no column names the merchants, so that rows are dealt out to invented ones: add such a column"
    )


def _choose_texts(
    path: Path, columns: Mapping[str, ColumnContent], chosen: dict[str, str], task: str, doubts: list[str]
) -> None:
    """Choose the text and, for a pair, the second text."""
    taken = set(chosen.values())
    free = {
        name: one
        for name, one in columns.items()
        if name not in taken and one.is_text and not fits(name, "identifier") and not fits(name, "merchant")
    }
    by_length = sorted((name for name in free if not free[name].is_class), key=lambda name: -free[name].length)
    firsts, titles = _best(free, ("query", "history")), [name for name in free if fits(name, "title")]
    singles = [name for name in _best(free, ("review", "question")) if not fits(name, "title")]
    if "text" not in chosen:
        paired = task in PAIRED or "pair" in chosen
        if firsts and task not in SINGLE and (titles or len(free) > 1 or "pair" in chosen):
            chosen["text"] = firsts[0]
        elif singles and not paired:
            chosen["text"] = singles[0]
        elif titles:
            chosen["text"] = titles[0]
        elif by_length:
            chosen["text"] = by_length[-1] if paired and len(by_length) > 1 else by_length[0]
            if len(by_length) > 1:
                doubts.append(f"the text is column {chosen['text']!r}; otherwise: --text NAME")
        else:
            raise DataError(
                f"{path}: no column holds texts beside the label {chosen['label']!r}; the columns are "
                f"{', '.join(columns)}: name the column with --text NAME"
            )
    if "pair" in chosen or task in SINGLE:
        return
    others = [name for name in [*titles, *by_length] if name != chosen["text"]]
    first_of_pair = chosen["text"] in firsts or (chosen["text"] in titles and len(titles) > 1)
    if others and (first_of_pair or task in PAIRED):
        chosen["pair"] = others[0]
    elif others and not task and (first := _of_several_labels(columns, chosen["label"], [chosen["text"], *others])):
        seconds = [name for name in (chosen["text"], *others) if name != first]
        of_pair = {name: _contradicted(columns, chosen["label"], first, name) for name in seconds}
        chosen["text"], chosen["pair"] = first, min(seconds, key=lambda name: of_pair[name])
        doubts.append(
            f"each row is taken for a pair of {chosen['text']!r} and {chosen['pair']!r}, as many texts of the first "
            "have several labels; if one text is all: --task category"
        )
    elif others and chosen["text"] not in singles:
        doubts.append(
            f"only column {chosen['text']!r} is read; if each row is a pair of texts: --pair NAME, for example "
            f"{others[0]}"
        )


def _of_several_labels(columns: Mapping[str, ColumnContent], label: str, names: Sequence[str]) -> str:
    """Return the column whose texts have several labels most often, as a query has; empty if none has often, or labels
    are ratings, which people may give to one thing differently."""
    if scale_of(columns[label].counts) is not None:
        return ""
    often = {name: _contradicted(columns, label, name) for name in names}
    most = max(names, key=lambda name: often[name])
    return most if often[most] > _MOST_CONTRADICTED else ""


def _contradicted(columns: Mapping[str, ColumnContent], label: str, *texts: str) -> float:
    """Return the share of the rows whose texts are in another row with another label."""
    keys = list(zip(*(columns[name].values for name in texts), strict=True))
    labels: dict[tuple[str, ...], set[str]] = {}
    for key, value in zip(keys, columns[label].values, strict=True):
        labels.setdefault(key, set()).add(value)
    return sum(len(labels[key]) > 1 for key in keys) / max(len(keys), 1)


def _task(
    columns: Mapping[str, ColumnContent],
    chosen: Mapping[str, str],
    task: str,
    named: Mapping[str, str],
    doubts: list[str],
) -> tuple[Meaning | None, str]:
    """Return the meaning of the labels, unless the user has ``named`` the class of each, and the task."""
    counts, text = columns[chosen["label"]].counts, chosen["text"]
    if "pair" not in chosen:
        if task in PAIRED:
            raise ConfigError(f"--task {task} has two texts: name the column of the second with --pair NAME")
        return _single(counts, text, chosen["label"], task, named, doubts)
    if not task:
        binary, same = len(counts) == 2, fits(text, "title") and not fits(text, "query")
        task = "relevance"
        if binary and fits(text, "history"):
            task = "recommend"
        elif binary and same:
            task = "matching"
        if task != "relevance" or (binary and not fits(text, "query")):
            doubts.append(f"the task is {task}; otherwise: --task relevance, recommend or matching")
    if named.keys() >= {label for label in counts if label}:
        return None, task
    if task == "relevance":
        meaning = grades(counts, _overlap(columns, chosen))
    else:
        classes = {"matching": MATCHING.classes, "recommend": RECOMMEND.classes}.get(task)
        if classes is None:
            raise ConfigError(f"--task {task} has one text: remove --pair; pairs are for {', '.join(PAIRED)}")
        meaning = sides(counts, *classes)
    if meaning is None and named:
        return None, task
    if meaning is None:
        odd = unclear(counts) if task == "relevance" else [label for label in counts if label]
        shown = ", ".join(map(repr, odd[:8])) + (f" and {len(odd) - 8} more" if len(odd) > 8 else "")
        raise DataError(
            f"labels of column {chosen['label']!r} ({shown}) do not say what they mean for {task}: name their classes "
            "with --meaning LABEL=CLASS (once one label is named, rows without a class are dropped), or another column "
            "with --label NAME"
        )
    _doubt_meaning(meaning, doubts)
    return meaning, task


def _single(
    counts: Mapping[str, int], text: str, label: str, task: str, named: Mapping[str, str], doubts: list[str]
) -> tuple[Meaning | None, str]:
    rated = sentiments(counts)
    if not task:
        if rated is not None and (
            rated.why == BY_NAME or fits(label, "stars") or fits(text, "review") or counts.keys() - {""} == _STARS
        ):
            task = "sentiment"
        else:
            task = "faq" if fits(text, "question") else "category"
        if scale_of(counts) is not None:
            other = "category" if task == "sentiment" else "sentiment"
            doubts.append(f"the task is {task}; if the labels are {_LABELS_OF[other]}: --task {other}")
    if task != "sentiment" or (named and (rated is None or named.keys() >= counts.keys() - {""})):
        return None, task
    if rated is None:
        raise DataError(f"the labels of column {label!r} are no ratings: use --task category, or another --label NAME")
    _doubt_meaning(rated, doubts)
    return rated, task


_STARS = {"1", "2", "3", "4", "5"}
"""Labels that are taken for ratings whatever the columns are called."""
_LABELS_OF = {"category": "classes without an order", "sentiment": "ratings"}


def _doubt_meaning(meaning: Meaning, doubts: list[str]) -> None:
    if not meaning.sure:
        shown = ", ".join(f"{label} = {name}" for label, name in meaning.labels.items())
        doubts.append(f"labels: {shown} ({meaning.why}); otherwise: --meaning LABEL=CLASS")


def _overlap(columns: Mapping[str, ColumnContent], chosen: Mapping[str, str]) -> dict[str, float]:
    """Return the mean share of the first text's character trigrams that the second has, by label."""
    shares: dict[str, list[float]] = {}
    values = (columns[chosen[role]].values[:_COMPARED] for role in ("text", "pair", "label"))
    for text, pair, label in zip(*values, strict=True):
        own = _trigrams(text)
        if own and label:
            shares.setdefault(label, []).append(len(own & _trigrams(pair)) / len(own))
    return {label: sum(found) / len(found) for label, found in shares.items()}


def _trigrams(text: str) -> set[str]:
    folded = text.casefold()
    return {folded[at : at + 3] for at in range(max(1, len(folded) - 2))} if folded else set()
