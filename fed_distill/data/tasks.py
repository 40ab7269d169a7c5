"""The tasks: classes in the order of the logits, gains for ranking, and parsing of labels.

Gains are those of the Shopping Queries dataset (ESCI; Reddy et al. 2022, arXiv:2206.06588), used in the KDD Cup
2022: exact 1, substitute 0.1, complement 0.01, irrelevant 0.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from fed_distill.data.examples import UNLABELED, Task
from fed_distill.errors import ConfigError, DataError

RELEVANCE = Task(
    name="relevance",
    classes=("exact", "substitute", "complement", "irrelevant"),
    pair=True,
    positive="exact",
    gains=(1.0, 0.1, 0.01, 0.0),
)
"""Grade of (query, product)."""

RECOMMEND = Task(name="recommend", classes=("not_recommend", "recommend"), pair=True, positive="recommend")
"""Whether to recommend a product: (history, product) pairs; a history is the titles of the last clicks."""

MATCHING = Task(name="matching", classes=("different", "same"), pair=True, positive="same")
"""Whether two titles are of the same product."""

NEXT_BASKET = Task("next-basket", ("bought", "not_bought"), pair=True, positive="bought", gains=(1.0, 0.0))
"""Whether a customer's next basket has a product: (history, product) pairs; a history is the titles of what the
customer bought before."""

SENTIMENT = Task(name="sentiment", classes=("negative", "positive"), pair=False, positive="positive")
"""Whether a review is positive."""

FIXED = {task.name: task for task in (RELEVANCE, RECOMMEND, MATCHING, SENTIMENT)}
"""Tasks of tables whose classes do not depend on the data."""
HISTORY_SEPARATOR = " ; "
"""Separator of the titles in a history, oldest first."""
_ALONE = re.compile(r"(?<!\S);(?!\S)")


def undivided(title: str) -> str:
    """Return a title with a comma in place of each semicolon that stands alone, which would divide it in a history."""
    return _ALONE.sub(",", title)


def history_text(titles: Iterable[str]) -> str:
    """Return the history of these titles, oldest first, as a text that a student reads."""
    return HISTORY_SEPARATOR.join(map(undivided, titles))


def category_task(labels: Iterable[Any], name: str = "category") -> Task:
    """Return a task with one text whose classes are the distinct ``labels``, sorted; the most frequent is positive.

    :param labels: labels of the data; those that `label_text` maps to "" are ignored
    :param name: ``category`` of a title or ``faq`` for the intent of a question
    :raises DataError: there are fewer than two classes
    """
    counts = Counter(text for text in map(label_text, labels) if text)
    if len(counts) < 2:
        raise DataError(f"task {name} requires at least two classes; the data have {sorted(counts) or 'none'}")
    classes = tuple(sorted(counts))
    return Task(name, classes, pair=False, positive=max(classes, key=lambda label: (counts[label], label)))


def choose_task(name: str, dataset: str, offered: Sequence[str]) -> None:
    """Raise ConfigError, listing the tasks of ``dataset``, if ``name`` is not one of them."""
    if name not in offered:
        raise ConfigError(f"dataset {dataset!r} does not support data.task = {name!r}; it has: {', '.join(offered)}")


def label_text(value: Any) -> str:
    """Return a label as stripped text, whole floats as integers; "" for null and NaN."""
    if value is None or value != value:
        return ""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def label_reader(task: Task) -> Callable[[Any], int]:
    """Return a function that maps a label in a file to its class index, or to `UNLABELED`.

    A class is matched by name, or, ignoring case and with blanks or hyphens for underscores, if only one class is
    called so; or by its index. Grades are not matched by index, because files number them in either direction, nor are
    classes of which one is called by a number.
    """
    known = {name: index for index, name in enumerate(task.classes)}
    alike = Counter(map(_loose, known))
    loose = {_loose(name): index for name, index in known.items() if alike[_loose(name)] == 1}
    numbered = any(name.isdecimal() for name in known)
    indices = {} if task.gains or numbered else {str(index): index for index in range(len(task.classes))}

    def read(value: Any) -> int:
        text = label_text(value)
        for names, key in ((known, text), (loose, _loose(text)), (indices, text)):
            if key in names:
                return names[key]
        return UNLABELED

    return read


def _loose(name: str) -> str:
    return re.sub(r"[\s-]+", "_", name.casefold())
