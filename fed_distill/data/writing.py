"""Generate titles, queries and questions: order of parts, names, units, case and noise."""

import re
from dataclasses import dataclass

import numpy as np

from fed_distill.data.intents import CLOSINGS, GREETINGS, INTENTS
from fed_distill.data.vocabulary import COLORS, LANGUAGES, PHRASES, UNITS
from fed_distill.data.world import World

_ORDERS = ("btmsc", "tbmsc", "bmtsc", "bmstc", "mbtcs", "tbmcs", "btcms")
"""Orders of brand (b), type (t), model (m), size (s) and colour (c) in a title."""
_CHINESE = LANGUAGES.index("zh")
_ALTERNATIVES = re.compile(r"\[([^\]]*)\]")
QUESTION_DRAWS = 16
"""Number of uniform draws that `write_question` takes."""
_FRAGMENTS = 0.25
"""Share of questions that are truncated, some of which are ambiguous."""


@dataclass(frozen=True)
class Habits:
    """The writing style of one merchant.

    language, second_language: indices into `LANGUAGES`. second_share: share of titles in the second language. order:
    order of the parts of a title. brand_form, synonym, unit_form: preferred names. code_style: form of a model (line
    name, code, code with a hyphen). upper, lower: case of the whole title. noise, typo, no_color, no_type: probability
    per title.
    """

    language: int
    second_language: int
    second_share: float
    order: str
    brand_form: int
    synonym: int
    unit_form: int
    code_style: int
    upper: bool
    lower: bool
    noise: float
    typo: float
    no_color: float
    no_type: float


def draw_habits(language: int, languages: tuple[int, ...], rng: np.random.Generator) -> Habits:
    """Draw the style of a merchant; ``languages`` are those of the marketplace."""
    case = rng.random()
    chinese = language == _CHINESE
    return Habits(
        language=language,
        second_language=int(rng.choice(languages)),
        second_share=float(rng.choice([0.0, 0.0, 0.1, 0.3])),
        order=_ORDERS[rng.integers(len(_ORDERS))],
        brand_form=int(rng.choice(3, p=(0.3, 0.1, 0.6) if chinese else (0.65, 0.35, 0.0))),
        synonym=int(rng.integers(3)),
        unit_form=int(rng.choice(4, p=(0.2, 0.2, 0.0, 0.6) if chinese else (0.4, 0.3, 0.3, 0.0))),
        code_style=int(rng.integers(3)),
        upper=bool(case < 0.12),
        lower=bool(case > 0.65),
        noise=float(rng.choice([0.0, 0.1, 0.5])),
        typo=float(rng.choice([0.0, 0.02, 0.08])),
        no_color=float(rng.uniform(0.0, 0.6)),
        no_type=float(rng.choice([0.0, 0.1, 0.3])),
    )


def write_title(world: World, product: int, color: int, habits: Habits, draws: list[float]) -> str:
    """Write a merchant's title of a product. ``draws``: eight uniform numbers, the only randomness."""
    language = habits.second_language if draws[0] < habits.second_share else habits.language
    synonym = habits.synonym if draws[1] < 0.85 else int(draws[1] * 1000) % 3
    kind = world.types[world.type_of[product]]
    brand = world.brands[world.brand_of[product]]
    parts = {
        "b": brand.forms[habits.brand_form],
        "m": _model(world, product, habits.code_style),
        "t": "" if draws[2] < habits.no_type else kind.words[language][synonym],
        "s": _size(world, product, habits.unit_form),
        "c": "" if draws[3] < habits.no_color else COLORS[color][language][synonym],
    }
    words = [parts[part] for part in habits.order if parts[part]]
    if draws[4] < habits.noise:
        phrase = PHRASES[language][int(draws[5] * len(PHRASES[language]))]
        words.insert(0 if draws[6] < 0.4 else len(words), phrase)
    text = " ".join(words)
    text = _mistyped(text, draws[7] / habits.typo) if draws[7] < habits.typo else text
    return text.upper() if habits.upper else text.lower() if habits.lower else text


def write_query(world: World, product: int, language: int, draws: list[float]) -> str:
    """Write a shopper's query for a product. ``draws``: eight uniform numbers, the only randomness."""
    kind = world.types[world.type_of[product]]
    chinese = language == _CHINESE
    brand_form = (2 if draws[0] < 0.6 else 0) if chinese else (1 if draws[0] < 0.2 else 0)
    words = [
        world.brands[world.brand_of[product]].forms[brand_form],
        _model(world, product, 0 if draws[1] < 0.6 else 1),
        kind.words[language][int(draws[2] * 3)] if draws[3] < 0.75 else "",
        _size(world, product, 3 if chinese and draws[4] < 0.5 else 0) if draws[5] < 0.8 else "",
    ]
    text = " ".join(word for word in words if word).lower()
    return _mistyped(text, draws[7] / 0.03) if draws[7] < 0.03 else text


def write_question(world: World, product: int, intent: str, habits: Habits, draws: list[float]) -> str:
    """Write a shopper's question about a product, in the merchant's language and style.

    :param draws: `QUESTION_DRAWS` uniform numbers, the only randomness
    """
    language = habits.second_language if draws[0] < habits.second_share else habits.language
    patterns = INTENTS[intent][language]
    pattern = patterns[habits.code_style if draws[1] < 0.4 else int(draws[2] * len(patterns))]
    name = world.types[world.type_of[product]].words[language][habits.synonym if draws[3] < 0.7 else int(draws[4] * 3)]
    text = chosen(pattern, habits, draws[11:]).replace("{product}", name)
    text = _fragment(text, language, draws[10]) if draws[9] < _FRAGMENTS else text
    text += ("？" if language == _CHINESE else "?") if draws[5] < 0.6 else ""
    before, after = GREETINGS[language], CLOSINGS[language]
    if draws[6] < 0.15 + habits.noise:
        text = f"{before[int(draws[6] / (0.15 + habits.noise) * len(before))]}, {text}"
    if draws[7] < 0.15 + habits.noise:
        text = f"{text} {after[int(draws[7] / (0.15 + habits.noise) * len(after))]}"
    return finished(text, habits, draws[8])


def chosen(pattern: str, habits: Habits, draws: list[float]) -> str:
    """Choose one of each of the pattern's alternatives, half of the time the merchant's usual one.

    :param draws: at least as many uniform numbers as there are alternatives
    """
    picks = iter(draws)

    def pick(match: re.Match[str]) -> str:
        choices, draw = match[1].split("/"), next(picks)
        return choices[habits.synonym % len(choices) if draw < 0.5 else int((2 * draw - 1) * len(choices))]

    return _ALTERNATIVES.sub(pick, pattern)


def finished(text: str, habits: Habits, draw: float) -> str:
    """Return a text with the merchant's share of mistyped ones and its case. ``draw``: a uniform number."""
    text = _mistyped(text, draw / habits.typo) if draw < habits.typo else text
    return text.upper() if habits.upper else text.lower() if habits.lower else text


def _model(world: World, product: int, style: int) -> str:
    name, code = world.brands[world.brand_of[product]].lines[world.line_of[product]]
    number = world.number_of[product]
    return f"{name} {number}" if style == 0 else f"{code}{number}" if style == 1 else f"{code}-{number}"


def _size(world: World, product: int, form: int) -> str:
    kind = world.types[world.type_of[product]]
    return f"{kind.sizes[world.size_of[product]]:g}{UNITS[kind.unit][form]}"


def _fragment(text: str, language: int, draw: float) -> str:
    """Return about two fifths of a text, from a random position."""
    words = list(text) if language == _CHINESE else text.split()
    kept = max(2 * len(words) // 5, 1)
    start = int(draw * (len(words) - kept + 1))
    return ("" if language == _CHINESE else " ").join(words[start : start + kept])


def _mistyped(text: str, draw: float) -> str:
    """Swap two adjacent characters."""
    place = int(draw * (len(text) - 1))
    return text[:place] + text[place + 1 : place + 2] + text[place : place + 1] + text[place + 2 :]
