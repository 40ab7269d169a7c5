"""Labelled texts, changed a little before a training, so that a student learns what they mean and not how they read.

Synonyms and deletion are those of EDA (Wei and Zou, EMNLP 2019, sec. 2), swapped characters are the noise of Belinkov
and Bisk (ICLR 2018, sec. 3.2), back-translation is of ``data.translation``. An example stays one example, and is
changed by draws of its own: under DP nothing else would do.
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
"""A word, or a Chinese character, which may be one."""
_SPACES = re.compile(r"\s{2,}")


@dataclass(frozen=True)
class Synonyms:
    """groups: expressions that may stand for each other. pattern: finds any of them, the longest first."""

    groups: Mapping[str, tuple[str, ...]]
    pattern: re.Pattern[str]

    @classmethod
    def of(cls, groups: Iterable[Sequence[str]]) -> "Synonyms":
        """From groups of expressions; one that is in several groups is of the first."""
        known: dict[str, tuple[str, ...]] = {}
        for group in groups:
            for expression in group:
                known.setdefault(expression.casefold(), tuple(group))
        return cls(known, re.compile("|".join(map(_bounded, sorted(known, key=len, reverse=True))), re.IGNORECASE))

    def replaced(self, text: str, share: float, rng: np.random.Generator) -> str:
        """``text`` with each expression replaced, with probability ``share``, by another of its group."""

        def other(match: re.Match[str]) -> str:
            found = match[0]
            group = [one for one in self.groups[found.casefold()] if one.casefold() != found.casefold()]
            return group[rng.integers(len(group))] if rng.random() < share else found

        return self.pattern.sub(other, text)


def check_augmentation(config: AugmentationConfig) -> None:
    """DataError if the dictionary or a translation model that is asked for cannot be read."""
    if config.dictionary is not None:
        _read(config.dictionary)
    if config.translated:
        back_translation(*config.back_translation)


def augmented(examples: Examples, config: AugmentationConfig, rng: np.random.Generator) -> Examples:
    """``examples`` with changed texts and pairs, as ``config`` says; each is changed by draws of its own.

    Raise DataError if the dictionary or a translation model cannot be read.
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
    """``text`` with each word left out with probability ``share``; if it is to be all of them, one stays."""
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
    """``word`` with two neighbouring characters swapped."""
    if len(word) < 2:
        return word
    place = int(rng.integers(len(word) - 1))
    return word[:place] + word[place + 1] + word[place] + word[place + 2 :]


def _bounded(expression: str) -> str:
    """Pattern of an expression that does not begin or end within a word; Chinese has no spaces that would say."""
    before, after = ("" if re.match(f"[{_HAN}]", edge) else bound for edge, bound in (
        (expression[0], r"(?<!\w)"), (expression[-1], r"(?!\w)"),
    ))  # fmt: skip
    return f"{before}{re.escape(expression)}{after}"


@cache
def _built_in() -> Synonyms:
    """What the shopping words of the marketplace may be called instead, in English, German and Chinese."""
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
            raise DataError(f"{path}, line {number}: it must be two or more expressions, separated by commas")
        groups += [group] if group else []
    if not groups:
        raise DataError(f"{path} holds no synonyms: a line is two or more expressions, separated by commas")
    return Synonyms.of(groups)
