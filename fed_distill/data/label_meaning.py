"""The meaning of the labels in a table: grades of relevance, a rating, or two sides of a decision.

Labels of pairs whose words are not known are ordered by how much of the first text is in the second, on average.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fed_distill.data.column_words import parts_of
from fed_distill.data.examples import UNLABELED
from fed_distill.data.tasks import FIXED, RELEVANCE, SENTIMENT, label_reader
from fed_distill.errors import ConfigError

_GRADES = {
    "exact": "e exact perfect excellent best relevant highlyrelevant passend genau exakt relevante pertinent exacte "
    "tammatch tameslesme tam eslesen volledig precies treffend parfait exacto exacta perfecto esatto perfetto "
    "pertinente exato dokladny trafny точный релевантный 精确 完全 完全匹配 相关 完全一致 一致 정확",
    "substitute": "s substitute substitut partial partially similar good fair ersatz ersatzprodukt alternative ikame "
    "muadil kismi vervanger vervangend vervanging alternatief gedeeltelijk teilweise ahnlich partiel similaire "
    "remplacement sustituto parcial sostituto parziale substituto zamiennik замена частичный похожий 替代 替代品 部分 "
    "部分一致 대체",
    "complement": "c complement tamamlayici aksesuar aanvulling aanvullend accessoire toebehoren bijpassend accessory "
    "accessories zubehor erganzung complementaire accessoire complemento accesorio complementario accessorio "
    "acessorio akcesorium akcesoria дополнение аксессуар 互补 配件 补充",
    "irrelevant": "i irrelevant ilgisiz alakasiz nietrelevant nietpassend notrelevant bad poor none "
    "unpassend nichtrelevant falsch nonpertinent horssujet irrelevante norelevante nonrilevante irrilevante nieistotny "
    "нерелевантный 不相关 无关 無関係 不一致 무관",
}
_YES = (
    "evet ayni yes true match matches same equal recommend recommended click clicked buy bought ja wahr gleich "
    "gleiche identisch empfehlen oui vrai identique meme si verdadero igual mismo vero uguale sim tak да 是 相同 はい "
    "同じ"
)
_NO = (
    "hayir farkli anders verschillend onjuist no false nomatch mismatch different other notrecommend notclicked "
    "nein falsch verschieden unterschiedlich andere non faux different distinto diferente falso diverso nao nie "
    "нет 否 不同 いいえ 異なる"
)
_POSITIVE = (
    "olumlu iyi positief goed positive pos good happy positiv gut positif bon positivo bueno buono bom pozytywny "
    "dobry положительный хорошо 正面 好评 积极 良い ポジティブ 긍정"
)
_NEGATIVE = (
    "olumsuz kotu negatief slecht negative neg bad unhappy negativ schlecht negatif mauvais negativo malo cattivo "
    "ruim negatywny zly отрицательный плохо 负面 差评 消极 悪い ネガティブ 부정"
)
_NOT = "not no nicht kein keine non pas ne sin senza nie niet nao не inte ikke"
_NEGATIONS = frozenset(_NOT.split())
_WORDS = {name: frozenset(text.split()) for name, text in _GRADES.items()}
BY_NAME = "by their names"
_MOST_WORDS = len(RELEVANCE.classes)
MOST_NUMBERS = 20
"""Distinct numbers from which on a column of numbers is a measurement and not a scale."""


@dataclass(frozen=True)
class Meaning:
    """Classes of labels.

    labels: class by label in the file; labels without a class are dropped. why: the rule, as a sentence. sure: whether
    the labels say it themselves.
    """

    labels: dict[str, str]
    why: str
    sure: bool


def named_meanings(meanings: Sequence[str], counts: Mapping[str, int]) -> dict[str, str]:
    """Return the class by label that a user has named.

    :param meanings: values of ``--meaning``, as ``LABEL=CLASS``
    :param counts: number of rows by label
    :raises ConfigError: a value has another form, or no row has its label
    """
    found: dict[str, str] = {}
    for text in meanings:
        label, separator, name = text.partition("=")
        if not separator:
            raise ConfigError(f"--meaning requires LABEL=CLASS, for example 3=exact, not {text!r}")
        if label not in counts:
            raise ConfigError(
                f"--meaning {text}: no row has the label {label!r}; labels: {', '.join(list(counts)[:8])}"
            )
        found[label] = name
    return found


def check_classes(named: Mapping[str, str], task: str) -> None:
    """Raise ConfigError if a user has ``named`` a class that ``task`` does not have; category and faq have any."""
    classes = FIXED[task].classes if task in FIXED else None
    for label, name in named.items():
        if classes is not None and name not in classes:
            raise ConfigError(f"--meaning {label}={name}: {task} has no class {name!r}; it has: {', '.join(classes)}")


def without_class(found: Mapping[str, int], labels: Mapping[str, str], task: str) -> dict[str, int]:
    """Return the number of rows by label that has no class, neither in ``labels`` nor by its own name.

    :param found: number of rows by label
    """
    read = label_reader(FIXED[task]) if task in FIXED else None
    kept = {label for label in found if label and (label in labels or read is None or read(label) != UNLABELED)}
    return {label: count for label, count in found.items() if label not in kept}


def scale_of(labels: Mapping[str, int]) -> dict[str, float] | None:
    """Return the position of each label on a scale of numbers, from 0 to 1, in this order; None if they are not on a
    scale."""
    numbers = {label: _number(label) for label in labels if label}
    values = sorted({value for value in numbers.values() if value is not None})
    if not 2 <= len(values) <= MOST_NUMBERS or None in numbers.values():
        return None
    low, high = values[0], values[-1]
    known = sorted(((label, value) for label, value in numbers.items() if value is not None), key=lambda one: one[1])
    return {label: (value - low) / (high - low) for label, value in known}


def grades(labels: Mapping[str, int], overlap: Mapping[str, float]) -> Meaning | None:
    """Return the grades of relevance that the labels of pairs mean; None if nothing tells them.

    :param labels: number of rows by label
    :param overlap: mean share of the first text that is in the second, by label
    """
    present = [label for label in labels if label]
    words = {label: _grade(label) for label in present}
    if all(words.values()) and len(set(words.values())) > 1:
        return Meaning({label: grade for label, grade in words.items() if grade}, BY_NAME, True)
    two = two_sides(labels, _YES, _NO)
    if two is not None:
        return Meaning({two[0]: "exact", two[1]: "irrelevant"}, "yes is exact, no is irrelevant", True)
    scale = scale_of(labels)
    if scale is not None:
        high = max(scale, key=lambda label: scale[label])
        low = min(scale, key=lambda label: scale[label])
        turned = overlap.get(high, 0.0) < overlap.get(low, 0.0)
        places = {label: 1.0 - place if turned else place for label, place in scale.items()}
        direction = "the lowest number is the best grade" if turned else "the highest number is the best grade"
        why = f"{direction}, as the pairs with it have most words in common"
        return Meaning({label: _graded(place) for label, place in places.items()}, why, False)
    if 2 <= len(present) <= _MOST_WORDS:
        ordered = sorted(present, key=lambda label: overlap.get(label, 0.0))
        places = {label: place / (len(ordered) - 1) for place, label in enumerate(ordered)}
        why = "their words are unknown: ordered by how much of the first text is in the second"
        return Meaning({label: _graded(places[label]) for label in present}, why, False)
    return None


def unclear(labels: Mapping[str, int]) -> list[str]:
    """Return the labels that are no known words for grades of relevance."""
    return [label for label in labels if label and not _grade(label)]


def sides(labels: Mapping[str, int], no: str, yes: str) -> Meaning | None:
    """Return which of two classes each label of a decision about a pair means; None if nothing tells it."""
    two = two_sides(labels, _YES, _NO)
    if two is not None:
        return Meaning({two[0]: yes, two[1]: no}, BY_NAME, True)
    scale = scale_of(labels)
    if scale is None or len(scale) != 2:
        return None
    return Meaning({label: yes if place else no for label, place in scale.items()}, f"the higher number is {yes}", True)


def sentiments(labels: Mapping[str, int]) -> Meaning | None:
    """Return positive and negative labels of reviews; None if the labels are neither words for these nor a scale."""
    two = two_sides(labels, _POSITIVE, _NEGATIVE, others=1)
    negative, positive = SENTIMENT.classes
    if two is not None:
        return Meaning({two[0]: positive, two[1]: negative}, BY_NAME, True)
    scale = scale_of(labels)
    if scale is None:
        return None
    found = {label: positive if place > 0.5 else negative for label, place in scale.items() if abs(place - 0.5) > 0.1}
    why = "ratings above the middle of their scale are positive, below negative, and those in the middle are dropped"
    return Meaning(found, why, len(scale) == 2) if len(set(found.values())) == 2 else None


def two_sides(labels: Mapping[str, int], yes: str, no: str, others: int = 0) -> tuple[str, str] | None:
    """Return the label among ``yes`` and that among ``no``; None without both, or with more than ``others`` more."""
    present = [label for label in labels if label]
    first, second = ([label for label in present if _joined(label) in words.split()] for words in (yes, no))
    return (first[0], second[0]) if len(first) == len(second) == 1 and len(present) <= 2 + others else None


def _joined(label: str) -> str:
    return "".join(parts_of(label))


def _grade(label: str) -> str | None:
    """Return the grade that a label names: as a whole, or by the words in it that name one, unless one negates it."""
    joined = _joined(label)
    whole = next((grade for grade, words in _WORDS.items() if joined in words), None)
    parts = [part for part in parts_of(label) if len(part) > 1]
    if whole is not None or _NEGATIONS & set(parts):
        return whole
    named = {grade for grade, words in _WORDS.items() for part in parts if part in words}
    return named.pop() if len(named) == 1 else None


def _graded(place: float) -> str:
    """Return the grade at a position from 0 (worst) to 1 (best), with equal distances between the four grades."""
    classes = tuple(reversed(RELEVANCE.classes))
    return classes[int(place * (len(classes) - 1) + 0.5)]


def _number(label: str) -> float | None:
    text = label.strip().replace(",", ".")
    return float(text) if re.fullmatch(r"[+-]?\d+(\.\d+)?", text) else None
