"""Numbers and findings as text, for the report, the README table and the terminal."""

import re
from collections.abc import Mapping, Sequence
from decimal import ROUND_CEILING, Decimal
from typing import Any

from fed_distill.config.experiment import TINY
from fed_distill.evaluation.shares import AT_CHANCE
from fed_distill.mechanisms.lookup import recalled
from fed_distill.privacy.disclosure import is_private

METRIC_NAMES = {
    "ndcg@10": "nDCG@10",
    "mrr@10": "MRR@10",
    "recall@20": "recall@20",
    "auc": "AUC",
    "qini": "Qini",
    "macro_f1": "macro-F1",
    "accuracy": "accuracy",
}
ROW_NAMES = {
    "teacher": "teacher",
    "student": "labels only, no teacher",
    "server": "server alone",
    "local": "each merchant alone",
    "pooled": "all data pooled",
    "fedavg": "FedAvg, no teacher",
    "oracle-proxy": "true labels on the proxy set",
    "bm25": "BM25, no training",
    "popularity": "most popular products",
    "repeat": "bought before, then most popular",
    "item-knn": "nearest products (item-kNN)",
}
"""Names of the teacher and the controls; a federation has its title."""

UNKNOWN = "–"
NARROW = "\N{NARROW NO-BREAK SPACE}"


def number(value: float | None, digits: int = 4) -> str:
    """Format a metric with a fixed number of digits; a dash if it is undefined."""
    return UNKNOWN if value is None else f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def signed(value: float, digits: int = 4) -> str:
    """Format a difference with its sign."""
    return f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


def plus_minus(half_width: float | None, digits: int = 4) -> str:
    """Format the half-width of an interval; "" if there is none."""
    return "" if half_width is None else f"±{NARROW}{half_width:.{digits}f}"


def at_most(value: float, digits: int = 3) -> str:
    """Format an epsilon or a delta, rounded up to significant digits: a guarantee must not be overstated."""
    exact = Decimal(repr(float(value)))
    unit = Decimal(1).scaleb(exact.adjusted() - digits + 1)
    return f"{float(exact.quantize(unit, rounding=ROUND_CEILING)):.{digits}g}"


def percent(value: float | None, digits: int = 0) -> str:
    """Format a share as per cent."""
    return UNKNOWN if value is None else f"{100 * value:.{digits}f}{NARROW}%".replace("-", "\N{MINUS SIGN}")


def size(count: float | None) -> str:
    """Format bytes in decimal units."""
    if count is None:
        return UNKNOWN
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= 0.9995 * scale:
            scaled = count / scale
            return f"{scaled:.0f}{NARROW}{unit}" if scaled >= 99.5 else f"{scaled:.3g}{NARROW}{unit}"
    return f"{count:.0f}{NARROW}B"


def duration(seconds: float | None) -> str:
    """Format a duration in seconds, minutes or hours."""
    if seconds is None:
        return UNKNOWN
    if seconds < 999.5e-6:
        return f"{seconds * 1e6:.3g}{NARROW}µs"
    if seconds < 999.5e-3:
        return f"{seconds * 1e3:.3g}{NARROW}ms"
    if seconds < 99.5:
        return f"{seconds:.3g}{NARROW}s"
    if seconds < 5970:
        return f"{seconds / 60:.3g}{NARROW}min"
    return f"{seconds / 3600:.3g}{NARROW}h"


def count(value: float | None) -> str:
    """Format a whole number with thousands separators."""
    return UNKNOWN if value is None else f"{value:,.0f}"


def privacy(summary: Mapping[str, Any]) -> str:
    """Describe the privacy guarantee of the run."""
    block = summary["privacy"]
    kept = "In a federation merchants' texts and labels stay with them. "
    pooled = "Only the control with all data pooled collects what federation leaves in place. "
    if not is_private(block):
        return kept + (
            "A merchant sends the update of its student or its soft labels, the number of its examples, and "
            f"its own scores. {pooled}"
            "This run had no differential privacy: an update may reveal something about the examples behind it, "
            "and there is no bound on that."
        )
    untold = ""
    if block.get("untold_sites"):
        untold = (
            f"The cost for merchants of {block['untold_sites']:,} sites is unknown, because these sent no valid "
            "report. "
        )
    if not block["merchants"] and untold:
        return f"{kept}{untold}{pooled}"
    if not block["merchants"]:
        return f"{kept}No merchant's budget or limits allowed any release: no merchant contributed. {pooled}"
    noise = block["noise_multiplier"]
    if noise["least"] is None:
        return kept + (
            f"What is released hides {block['protects']}: labels were randomized before training, with ε = "
            f"{at_most(block['epsilon'])} at most and δ = 0, over all rounds and for each of {block['merchants']:,} "
            f"merchants, by the ledgers that were charged before each release. {untold}Trusted: {block['trusted']}. "
            f"{pooled}"
        )
    if block["epsilon"] is None:
        return kept + (
            f"Noise was added to protect {block['protects']}, but so little (noise multipliers from "
            f"{noise['least']:.3g} on) that there is no guarantee: no ε is large enough at δ = {block['delta']:.3g}. "
            f"{untold}{pooled}"
        )
    return kept + (
        f"What is released hides the presence of {block['protects']}: differential privacy with ε = "
        f"{at_most(block['epsilon'])} at most, δ = {at_most(block['delta'])} at most, over all rounds and for each of "
        f"{block['merchants']:,} merchants, by the ledgers that were charged before each release. Noise multipliers: "
        f"{_span(noise['least'], noise['most'])}, counted by the {block['accountant'].upper()} accountant. "
        f"{untold}Trusted: {block['trusted']}. {pooled}"
    )


def promises(summary: Mapping[str, Any]) -> list[str]:
    """Return further facts about the guarantee, one sentence each: other deltas, groups, and origin of the noise."""
    block = summary["privacy"]
    if not is_private(block) or not block["merchants"]:
        return []
    found = []
    if block.get("epsilon_at"):
        known = [(delta, value) for delta, value in block["epsilon_at"].items() if value is not None]
        at = ", ".join(f"{at_most(value)} at δ = {delta}" for delta, value in known)
        found += [f"For comparison between runs: ε = {at}."] if known else []
    mechanism = recalled(block["unit"])
    if mechanism is not None:
        found += mechanism.about_groups(
            block.get("group"), block.get("largest_group"), block.get("merchants_of_a_group")
        )
    if block.get("reproducible_noise"):
        found.append(
            "This run's noise is derived from the run's seed, so anyone who has the seed can subtract it: it protects "
            "nobody outside a simulation."
        )
    elif "reproducible_noise" in block:
        found.append(
            "This run's noise is derived from secrets that are not part of the run: its seed does not reproduce it."
        )
    return found


def byzantine(summary: Mapping[str, Any]) -> str:
    """Describe the Byzantine merchants of the run; "" without any."""
    attack = summary.get("byzantine")
    if attack is None:
        return ""
    by_seed = {seed: ", ".join(names) for seed, names in attack["merchants"].items()}
    who = "; ".join(f"on seed {seed}: {names}" for seed, names in by_seed.items())
    return (
        f"This is a simulated attack: in the federations {percent(attack['fraction'])} of the merchants are Byzantine, "
        f"by {attack['attack']} ({who}). Controls have none, and figures by merchant are of the honest ones."
    )


def audit_bound(summary: Mapping[str, Any]) -> str:
    """Describe the canaries' bounds on epsilon beside the accountant's epsilon."""
    audit = summary["privacy"]["audit"]
    found = []
    if audit["epsilon_lower_bound"] is not None:
        promised = audit["epsilon_of_accountant"]
        says = f"the ledger says {promised:.2f} there" if promised is not None else "there was no guarantee"
        found.append(
            f"Canaries show that ε is at least {audit['epsilon_lower_bound']:.2f} (confidence "
            f"{percent(audit['confidence'])}, δ = {audit['delta']:g}); {says}."
        )
    white_box = audit.get("white_box")
    if white_box:
        promised = white_box["promised"]
        says = "no guarantee" if promised is None else f"the guarantee is {promised:.2f} for one {white_box['unit']}"
        found.append(
            f"A white-box audit with {count(white_box['canaries'])} canaries shows that ε is at least "
            f"{white_box['steinke']:.2f} (Steinke et al. 2023) and {white_box['f_dp']:.2f} (f-DP, Mahloujifar et al. "
            f"2024) there; {says}."
        )
        if white_box["exceeded"]:
            found.append("This exceeds the guarantee: do not rely on it.")
    return " ".join(found)


def dataset_name(summary: Mapping[str, Any]) -> str:
    """Return the name of the data for readers; a run of an earlier version has that of the dataset only."""
    name: str = summary.get("dataset_name", summary["dataset"])
    return name


def is_tiny(summary: Mapping[str, Any]) -> bool:
    """Whether the run is an experiment's tiny version."""
    name: str = summary["name"]
    return re.search(rf"{TINY}(-\d+)?$", name) is not None


def weak_teacher(summary: Mapping[str, Any]) -> str:
    """Return a warning if the teacher is no better than chance, or worse than the student without it, or, without that
    control, than the student that it taught; else an empty string.

    A student may well be better than its teacher where it learned from labels too, so that only a difference beyond
    the control's interval counts.
    """
    name = "student" if "student" in summary["controls"] else "server"
    teacher = summary["teacher"].get(summary["headline"])
    if teacher is None:
        return ""
    advice = (
        ""
        if is_tiny(summary)
        else " Give it more steps or labels, or choose another (teacher.steps, data.public_labels, teacher.model)."
    )
    chance = summary["federations"][summary["federation"]]["notes"].get("retention", "")
    if chance.startswith(AT_CHANCE):
        return f"{chance[0].upper()}{chance[1:]}: do not expect its soft labels to help.{advice}"
    if name not in summary["controls"]:
        return ""
    score = summary["controls"][name][summary["headline"]]
    half = summary["intervals"]["controls"][name].get(summary["headline"]) or 0.0
    if score is None or teacher >= score - half:
        return ""
    return (
        f"The teacher ({number(teacher)}) is worse than {ROW_NAMES[name]} ({number(score)}): its soft labels may harm, "
        f"and what is kept of its quality says nothing.{advice}"
    )


def verdict(summary: Mapping[str, Any]) -> str:
    """Return the main finding of the run in one or two sentences for non-experts."""
    main = summary["federations"][summary["federation"]]
    metric = METRIC_NAMES[summary["headline"]]
    subject = f"Trained by federation across {summary['merchants']:,} merchants, the small student"
    kept = (
        f"keeps {percent(main['retention'], 1)} of the teacher's {metric}"
        if main["retention"] is not None and not weak_teacher(summary)
        else f"reaches {number(main[summary['headline']])} {metric}"
    )
    gap, half = main["gap_closed"], main["interval"]["gap_closed"]
    if gap is None:
        reason = main["notes"].get("gap_closed", "")
        if reason.startswith(("pooling", "with one seed")):
            return f"{subject} {kept}. There was no clear gap to close: {reason}."
        return f"{subject} {kept}. The share of the possible gain is unknown: {_needs(summary)}."
    gained = percent(gap) + (f"{NARROW}±{NARROW}{percent(half)}" if half is not None else "")
    if half is not None and abs(gap) <= half:
        return (
            f"{subject} {kept}, but its gain over the best student trained without federation is within chance "
            f"({gained} of what pooling all data would give)."
        )
    if gap <= 0:
        return f"{subject} {kept}, but it is no better than the best student trained without federation."
    return f"{subject} {kept} and gains {gained} of what collecting everybody's data in one place would have gained."


def _needs(summary: Mapping[str, Any]) -> str:
    missing = [name for name in ("server", "local", "pooled") if name not in summary["controls"]]
    if not missing:
        return "a control was not run on every seed"
    names = _listed([f"“{ROW_NAMES[name]}”" for name in missing])
    keys = _listed([f'"{name}"' for name in missing])
    subject, verb = ("control", "was") if len(missing) == 1 else ("controls", "were")
    return f"the {subject} {names} {verb} not run (add {keys} to controls)"


def _listed(names: Sequence[str]) -> str:
    """Join names as a sentence does: "a", "a and b", "a, b and c"."""
    return " and ".join([*([", ".join(names[:-1])] if len(names) > 1 else []), names[-1]])


def _span(least: float, most: float) -> str:
    """Format a range, or a single number if both ends are equal."""
    ends = f"{least:.3g}", f"{most:.3g}"
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)
