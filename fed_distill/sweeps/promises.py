"""The privacy guarantees of a study in words, with their assumptions; see DESIGN's privacy model.

Numbers are those of the runs; missing values are taken from the definition of the unit.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from fed_distill.config import is_protected
from fed_distill.mechanisms.base import Words
from fed_distill.mechanisms.lookup import recalled
from fed_distill.reporting.wording import NARROW
from fed_distill.sweeps.collect import BETWEEN, FINISHED
from fed_distill.sweeps.findings import epsilon_text, odds_factor

ASSUMPTIONS = (
    "ε covers all rounds and all private phases of one federation with one seed. Publishing several students of this "
    "study, or several seeds, costs the sum of their ε.",
    "The proxy set and the server's own examples are public and not protected.",
    "Settings, such as learning rates and rounds, are assumed to be independent of private data: the cost of tuning "
    "on private data is not included.",
    "The controls (each merchant alone, all data pooled, FedAvg without a teacher) are trained without privacy. They "
    "are measures for this study and would not be released.",
    "Noise is derived from the run's seed, so that this study is reproducible. Anyone who has the seed can subtract "
    "it. Real sites and their server derive it from secrets of their own.",
)


@dataclass(frozen=True)
class Budget:
    """Cells of one unit with about the same ε. odds: factor on the odds of a guess, e^ε."""

    epsilon: str
    odds: str
    delta: str
    noise: str


@dataclass(frozen=True)
class Promise:
    """A privacy unit of the study, in words, with its ranges of numbers."""

    unit: Words
    trusted: str
    accountants: str
    counted: str
    reveals: Sequence[str]
    budgets: Sequence[Budget]


def promises(results: pd.DataFrame) -> list[Promise]:
    """Return one entry per privacy unit among the finished cells, in order of first use; none for unprotected cells."""
    own = results[(results["role"] == "cell") & (results["status"] == FINISHED)]
    units = [unit for unit in own["privacy.unit"].dropna().unique() if is_protected(unit)]
    return [_promise(str(unit), own[own["privacy.unit"] == unit]) for unit in units]


def _promise(name: str, cells: pd.DataFrame) -> Promise:
    mechanism = recalled(name)
    unit = Words("", "not said", name, "", "", "") if mechanism is None else mechanism.words
    reveals = _texts(cells, "privacy.reveals")
    return Promise(
        unit,
        trusted="; ".join(_texts(cells, "privacy.trusted")) or unit.trusted,
        accountants=", ".join(_texts(cells, "privacy.accountant")) or "not said",
        counted=_counted(cells),
        reveals=list(dict.fromkeys(item for text in reveals for item in text.split(BETWEEN))),
        budgets=_budgets(cells),
    )


def _budgets(cells: pd.DataFrame) -> list[Budget]:
    """Return one entry per ε, as it is shown, in ascending order; unknown ones last."""
    rounded = cells.assign(shown=[epsilon_text(None if math.isnan(one) else one) for one in cells["privacy.epsilon"]])
    found = []
    for shown, group in rounded.sort_values("privacy.epsilon").groupby("shown", sort=False):
        epsilon = float(group["privacy.epsilon"].max())
        odds = "unknown" if math.isnan(epsilon) else odds_factor(epsilon)
        columns = ["privacy.noise_multiplier.least", "privacy.noise_multiplier.most"]
        found.append(Budget(str(shown), odds, _range(group, ["privacy.delta"], ".1e"), _range(group, columns, ".3g")))
    return found


def _counted(cells: pd.DataFrame) -> str:
    merchants = _range(cells, ["run.merchants"], ",.0f")
    examples = cells["run.examples"].notna().any()
    known = f", {_range(cells, ['run.examples'], ',.0f')} training examples in all" if examples else ""
    return f"{merchants} merchants{known}"


def _range(cells: pd.DataFrame, columns: Sequence[str], form: str) -> str:
    values = [float(value) for name in columns if name in cells for value in cells[name].dropna()]
    if not values:
        return "not said"
    ends = dict.fromkeys(format(end, form) for end in (min(values), max(values)))
    return f"{NARROW}to{NARROW}".join(ends)


def _texts(cells: pd.DataFrame, column: str) -> list[str]:
    if column not in cells:
        return []
    return list(dict.fromkeys(str(text) for text in cells[column].dropna() if str(text)))
