"""The findings of a study in sentences for non-engineers: the main answer first, then one sentence per series.

Comparisons are paired, and called a difference only if they exceed the half-width of their 95 % interval and their
p-value, with Holm's correction over the combinations, is below 0.05; without an interval, the sentence states that
chance cannot be excluded.
"""

import math
from collections.abc import Sequence

import pandas as pd

from fed_distill.reporting.headline import SIGNIFICANT, probability
from fed_distill.reporting.wording import METRIC_NAMES, number, percent, plus_minus
from fed_distill.sweeps.collect import FINISHED, WHITE_BOX
from fed_distill.sweeps.curves import Row, epsilon_of, rounded_up, series_numbers
from fed_distill.sweeps.headline_metric import metric_names


def epsilon_text(epsilon: float | None) -> str:
    """Format ε with two digits, rounded up, so that it stays a valid bound."""
    if epsilon is None or math.isnan(epsilon):
        return "unknown"
    return "∞" if math.isinf(epsilon) else f"{rounded_up(epsilon):.3g}"


def odds_factor(epsilon: float) -> str:
    """Return the factor by which ε may change the odds of a guess: e^ε."""
    factor = math.exp(min(epsilon, 700.0))
    return f"{factor:.3g}" if factor < 100 else f"{factor:,.0f}" if factor < 1e6 else f"{factor:.1e}"


def answer(combinations: pd.DataFrame) -> str:
    """Return the main finding: the smallest ε at which a student is better than the server alone."""
    rows = _rows(combinations)
    if not rows:
        return "No cell of this study has finished yet."
    if len(names := metric_names(combinations)) > 1:
        return f"The cells of this study have different metrics: {', '.join(names)}. Compare rows of one metric."
    metric, private = _metric(rows), [row for row in rows if _finite(row)]
    if not private:
        best = max(rows, key=lambda row: float(row["score"]))
        return f"The best result is that of {_name(best)}: {_score(best)} {metric}{_against_server(best)}."
    if all(math.isnan(row["above_server"]) for row in private):
        best = max(private, key=lambda row: (-_epsilon(row), row["score"]))
        strictest = epsilon_text(_epsilon(best))
        return f"At the strictest privacy budget, ε = {strictest}, {_name(best)} reaches {_score(best)} {metric}."
    better = [row for row in private if _is_above(row)]
    if not better:
        return (
            f"At none of the privacy budgets is a student better in {metric} than the one that the server trains alone"
            f"{', beyond chance' if _seeds(private) > 1 else ''}."
        )
    best = min(better, key=lambda row: (_epsilon(row), -row["score"]))
    return (
        "The strictest privacy budget at which a student is better than the one that the server trains alone is ε = "
        f"{epsilon_text(_epsilon(best))}: there {_name(best)} reaches {_score(best)} {metric}{_against_server(best)}."
    )


def sentences(combinations: pd.DataFrame) -> list[tuple[str, str]]:
    """Return (series, sentence) in the study's order, for series with finished cells."""
    rows = _rows(combinations)
    found = []
    for series in series_numbers(combinations):
        own = [row for row in rows if row["series"] == series]
        if own:
            found.append((series, _sentence(own)))
    return found


def audit_sentence(results: pd.DataFrame) -> str:
    """Return whether an attack refuted the accountant's ε; "" if no private cell was attacked."""
    own = results[(results["role"] == "cell") & (results["status"] == FINISHED)]
    audited = own[own["privacy.epsilon"].notna() & own["audit.epsilon_lower_bound"].notna()].drop_duplicates(
        "fingerprint"
    )
    if audited.empty:
        return ""
    promised = audited["privacy.epsilon"]
    if "audit.epsilon_of_accountant" in audited:  # at the audit's delta, where both are comparable
        promised = audited["audit.epsilon_of_accountant"].astype("float64").fillna(promised)
    exceeded = audited["audit.epsilon_lower_bound"] > promised
    largest = audited["audit.epsilon_lower_bound"].max()
    if "audit.white_box.exceeded" in audited:
        exceeded |= audited["audit.white_box.exceeded"].eq(True)
        largest = max(largest, audited[[*WHITE_BOX.values()]].max(axis=None, skipna=True))
    broken = audited[exceeded]
    if broken.empty:
        return (
            f"{len(audited):,} private cells were attacked. In none of them did an attack prove a larger ε than was "
            f"guaranteed: the largest lower bound is {largest:.2f}."
        )
    return (
        f"WARNING: in {len(broken):,} of {len(audited):,} attacked cells an attack proved a larger ε than was "
        f"guaranteed (fingerprints {', '.join(broken['fingerprint'].str[:8])}). Do not rely on these guarantees."
    )


def _sentence(rows: Sequence[Row]) -> str:
    """Describe one series: its loosest and strictest budget compared with no privacy and with the server alone."""
    metric = _metric(rows)
    private = sorted((row for row in rows if _finite(row)), key=_epsilon, reverse=True)
    free = next((row for row in rows if epsilon_of(row) == math.inf), None)
    shown = [*([free] if free is not None else []), *private[:1], *private[1:][-1:]] or [rows[0]]
    parts: list[str] = []
    for row in shown:
        unit = "" if parts else f" {metric}"
        parts.append(
            f"{_promised(row)} it reaches {_score(row)}{unit}{_kept(row, free)}{_against_server(row, not parts)}"
        )
    text = "; ".join(part.rstrip(",") for part in parts)
    return text[0].upper() + text[1:] + "."


def _promised(row: Row) -> str:
    epsilon = epsilon_of(row)
    if epsilon is None:
        return "at an unknown ε"
    return f"at ε = {epsilon_text(epsilon)}" if math.isfinite(epsilon) else "without privacy"


def _kept(row: Row, free: Row | None) -> str:
    """Describe the share of the gain over the server alone that is left with privacy."""
    if free is None or row is free or not _is_above(free) or math.isnan(row["above_server"]):
        return ""
    share = row["above_server"] / free["above_server"]
    kept = "nothing" if share <= 0 else "all" if share >= 1 else percent(share)
    return f", keeps {kept} of the gain without privacy,"


def _against_server(row: Row, with_score: bool = True) -> str:
    difference, half = row["above_server"], row["above_server_interval"]
    if math.isnan(difference):
        return ""
    server = "the server alone" + (f" ({number(row['control.server'])})" if with_score else "")
    if math.isnan(half):
        only = " on the only seed" if with_score else ""
        return f" and is {'above' if difference > 0 else 'not above'} {server}{only}"
    if abs(difference) <= half:
        return f" and differs from {server} by no more than chance"
    if not _is_significant(row):
        p_value = probability(row["above_server_p"])
        return f" and may differ from {server} by chance (p = {p_value} among the rows of the table)"
    return f" and is {'above' if difference > 0 else 'below'} {server}"


def _is_above(row: Row) -> bool:
    half = row["above_server_interval"]
    return bool(row["above_server"] > (0.0 if math.isnan(half) else half)) and _is_significant(row)


def _is_significant(row: Row) -> bool:
    """Whether the difference to the server has a small p-value, or none."""
    return not row["above_server_p"] >= SIGNIFICANT


def _rows(combinations: pd.DataFrame) -> list[Row]:
    return [row for row in combinations.to_dict("records") if not math.isnan(row["score"])]


def _finite(row: Row) -> bool:
    epsilon = epsilon_of(row)
    return epsilon is not None and math.isfinite(epsilon)


def _epsilon(row: Row) -> float:
    epsilon = epsilon_of(row)
    return math.inf if epsilon is None else epsilon


def _seeds(rows: Sequence[Row]) -> int:
    return max(int(row["seeds"]) for row in rows)


def _metric(rows: Sequence[Row]) -> str:
    name = str(rows[0]["run.headline"])
    return METRIC_NAMES.get(name, name)


def _name(row: Row) -> str:
    return str(row["series"])


def _score(row: Row) -> str:
    half = row["score_interval"]
    return number(row["score"]) + ("" if math.isnan(half) else f" {plus_minus(half)}")
