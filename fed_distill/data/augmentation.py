"""Augment labelled texts before training.

Synonym replacement and deletion are from EDA (Wei and Zou, EMNLP 2019, section 2), character swaps are the noise of
Belinkov and Bisk (ICLR 2018, section 3.2), and back-translation is in ``data.translation``. Each example is augmented
in place with independent random draws, so the number of examples and the sensitivity under DP do not change.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from fed_distill.config import AugmentationConfig
from fed_distill.data.examples import Examples
from fed_distill.data.translation import back_translation
from fed_distill.data.vocabulary import COLORS, DEPARTMENTS
from fed_distill.errors import DataError

_HAN = "\u3400-\u4dbf\u4e00-\u9fff"
_WORD = re.compile(f"[{_HAN}]|[^\\s{_HAN}]+")
"""A word, or a single Chinese character."""
_SPACES = re.compile(r"\s{2,}")


@dataclass(frozen=True)
class Synonyms:
    """Groups of interchangeable expressions.

    groups: the group of each expression. pattern: matches any expression, longest first.
    """

    groups: Mapping[str, tuple[str, ...]]
    pattern: re.Pattern[str]

    @classmethod
    def of(cls, groups: Iterable[Sequence[str]]) -> "Synonyms":
        """Build from groups of expressions; an expression in several groups belongs to the first one."""
        known: dict[str, tuple[str, ...]] = {}
        forms: dict[str, None] = {}
        for group in groups:
            for expression in group:
                known.setdefault(expression.casefold(), tuple(group))
                forms |= dict.fromkeys((expression.casefold(), expression.lower()))
        longest_first = sorted(forms, key=len, reverse=True)
        return cls(known, re.compile("|".join(map(_bounded, longest_first)), re.IGNORECASE))

    def replaced(self, text: str, share: float, rng: np.random.Generator) -> str:
        """Replace each expression in ``text``, with probability ``share``, by another of its group."""

        def other(match: re.Match[str]) -> str:
            found = match[0]
            # The pattern takes some letters for others that they are not folded to, such as the Turkish İ for an i.
            group = [one for one in self.groups.get(found.casefold(), ()) if one.casefold() != found.casefold()]
            if not group:
                return found
            return group[rng.integers(len(group))] if rng.random() < share else found

        return self.pattern.sub(other, text)


def check_augmentation(config: AugmentationConfig) -> None:
    """Raise DataError if the configured dictionary or translation model cannot be read."""
    if config.dictionary is not None:
        _read(config.dictionary)
    if config.translated:
        back_translation(*config.back_translation)


def augmented(examples: Examples, config: AugmentationConfig, rng: np.random.Generator) -> Examples:
    """Augment texts and pairs, each example with independent draws.

    :raises DataError: the dictionary or a translation model cannot be read
    """
    synonyms = _built_in() if config.dictionary is None else _read(config.dictionary)
    reworded = back_translation(*config.back_translation).reworded if config.translated else None
    parts = [examples.texts] if examples.pairs is None else [examples.texts, examples.pairs]
    changed = [
        tuple(
            _changed(text, config, synonyms, reworded, own)
            for text, own in zip(part, rng.spawn(len(part)), strict=True)
        )
        for part in parts
    ]
    return replace(examples, texts=changed[0], pairs=changed[1] if len(changed) == 2 else None)


def _changed(
    text: str,
    config: AugmentationConfig,
    synonyms: Synonyms,
    reworded: Callable[[str], str] | None,
    rng: np.random.Generator,
) -> str:
    if reworded is not None and rng.random() < config.translated:
        text = reworded(text)
    if config.synonyms:
        text = synonyms.replaced(text, config.synonyms, rng)
    if config.characters:
        text = _WORD.sub(lambda word: _swapped(word[0], rng) if rng.random() < config.characters else word[0], text)
    return _without(text, config.deletion, rng) if config.deletion else text


def _without(text: str, share: float, rng: np.random.Generator) -> str:
    """Delete each word with probability ``share``; if all words are drawn, keep one."""
    words = list(_WORD.finditer(text))
    if len(words) < 2:
        return text
    dropped = rng.random(len(words)) < share
    if dropped.all():
        dropped[rng.integers(len(words))] = False
    for word in (word for word, drop in zip(words[::-1], dropped[::-1], strict=True) if drop):
        text = text[: word.start()] + text[word.end() :]
    return _SPACES.sub(" ", text).strip()


def _swapped(word: str, rng: np.random.Generator) -> str:
    """Swap two adjacent characters of ``word``."""
    if len(word) < 2:
        return word
    place = int(rng.integers(len(word) - 1))
    return word[:place] + word[place + 1] + word[place] + word[place + 2 :]


def _bounded(expression: str) -> str:
    """Return a pattern that matches whole words only, except in Chinese, which has no spaces."""
    before, after = ("" if re.match(f"[{_HAN}]", edge) else bound for edge, bound in (
        (expression[0], r"(?<!\w)"), (expression[-1], r"(?!\w)"),
    ))  # fmt: skip
    return f"{before}{re.escape(expression)}{after}"


@cache
def _built_in() -> Synonyms:
    """Return the synonyms of the marketplace's product words in English, German and Chinese."""
    products = (words for department in DEPARTMENTS.values() for words, _, _ in department.values())
    return Synonyms.of(group for words in (*products, *COLORS) for group in words)


@cache
def _read(path: Path) -> Synonyms:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the synonyms of training.augmentation.dictionary, {path}: {error}") from error
    groups = []
    for number, line in enumerate(lines, 1):
        group = [one.strip() for one in line.split(",")] if line.strip() else []
        if len(group) == 1 or not all(group):
            raise DataError(f"{path}, line {number}: write two or more expressions, separated by commas")
        groups += [group] if group else []
    if not groups:
        raise DataError(f"{path} contains no synonyms: each line is two or more expressions, separated by commas")
    return Synonyms.of(groups)
