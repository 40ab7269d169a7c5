"""What a campaign did to the test customers, and how well its effect is predicted: two files of a finished run.

The average effect and that of each tenth of the customers, by predicted effect, are doubly robust estimates with the
student's responses, which were trained on other customers; intervals are over customers. On generated data, the true
effects are beside them.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from fed_distill.data.campaign_cells import effects, responses
from fed_distill.data.examples import Examples
from fed_distill.evaluation.campaigns import trial_of
from fed_distill.evaluation.uplift import (
    Floats,
    Overlap,
    Totals,
    Trial,
    auuc,
    bootstrap,
    doubly_robust,
    qini,
    tenths,
    uplift_at,
)
from fed_distill.reporting.wording import number, percent
from fed_distill.seeds import numpy_stream
from fed_distill.storage.files import strict_json

EFFECTS, EFFECTS_TABLE = "campaign_effect.json", "campaign_effect.txt"
_REPEATS = 500
_METRICS = ("qini", "auuc", "uplift_at_10", "uplift_at_30")
_NAMES = {
    "student": "predicted effect (student)",
    "teacher": "predicted effect (teacher)",
    "response": "predicted response if treated",
    "random": "random",
    "true": "true effect",
}


def campaign_effect(
    test: Examples,
    student: npt.NDArray[np.floating],
    teacher: npt.NDArray[np.floating] | None,
    true: Mapping[int, float] | None,
    seed: int,
) -> dict[str, Any]:
    """Return the account of a campaign's effect, JSON-ready.

    :param test: the test customers
    :param student: probabilities of the cells by the student ``[n, 4]``
    :param teacher: the same by the teachers; None if they do not cover all of them
    :param true: true effects by group, of generated data
    :param seed: of the bootstrap
    :returns: ``customers`` (counts and the plain difference of the arms), ``overlap``, ``average``, ``tenths`` and
        ``targeting`` (metrics of rankings, and the student's advantage over response and random targeting)
    """
    trial, predicted = trial_of(test), effects(student)
    if not trial.has_both_arms:
        return {"customers": _customers(trial)}
    known = None if true is None else np.array([true[group] for group in test.groups.tolist()])
    without, treated = responses(student)
    scores = {"student": predicted}
    if teacher is not None:
        scores["teacher"] = effects(teacher)
    scores |= {"response": treated, "random": np.zeros(len(trial))}
    if known is not None:
        scores["true"] = known
    return {
        "customers": _customers(trial),
        "overlap": vars(Overlap.of(trial)),
        **_estimated(trial, predicted, doubly_robust(trial, without, treated), known, seed),
        "targeting": _targeting(trial, scores, seed),
    }


def as_json(account: Mapping[str, Any]) -> str:
    """Return the account as the text of ``EFFECTS``."""
    return strict_json(dict(account), EFFECTS, indent=2) + "\n"


def as_table(account: Mapping[str, Any]) -> str:
    """Return the account as text."""
    counts = account["customers"]
    lines = [
        f"{counts['treated']:,} treated and {counts['control']:,} others; of these bought "
        f"{percent(counts['treated_bought'], 1)} and {percent(counts['control_bought'], 1)}. They are "
        f"{counts['distinct']:,} customers, each counted once for each campaign.",
    ]
    if "average" not in account:
        return lines[0] + " All are in one arm, so that there is no effect to estimate.\n"
    average, overlap = account["average"], account["overlap"]
    lines += [
        f"Average effect: {_shown(average)}; predicted {number(average['predicted'])}; "
        f"true {number(average['true'])}; plain difference of the arms {number(counts['difference'])}.",
        "",
        f"{'tenth':>7}{'predicted':>12}{'estimated, with interval':>30}{'true':>10}",
        *(
            f"{at:>7}{number(row['predicted']):>12}{_shown(row):>30}{number(row['true']):>10}"
            for at, row in enumerate(account["tenths"], 1)
        ),
        "",
        f"{'targeting by':<32}{'Qini':>26}{'AUUC':>26}{'uplift at 10 %':>26}{'uplift at 30 %':>26}",
    ]
    targeting = account["targeting"]
    lines += [
        f"{_NAMES[name]:<32}" + "".join(f"{_shown(row[metric]):>26}" for metric in _METRICS)
        for name, row in targeting["rankings"].items()
    ]
    lines += [
        f"Qini of the student above that of {name} targeting: {_shown(found)}."
        for name, found in targeting["qini_above"].items()
    ]
    lines += [
        "",
        f"{'propensity':>12}{'treated':>10}{'others':>10}",
        *(
            f"{low:>7.1f}-{high:.1f}{first:>11,}{second:>10,}"
            for (low, high), first, second in zip(
                pairwise(overlap["edges"]), overlap["treated"], overlap["control"], strict=True
            )
        ),
        f"Clipped propensities: {percent(overlap['clipped'], 1)}. Effective numbers: "
        f"{overlap['effective'][0]:,.0f} treated, {overlap['effective'][1]:,.0f} others.",
    ]
    return "\n".join(lines) + "\n"


def _customers(trial: Trial) -> dict[str, float | int | None]:
    rates = [float(trial.bought[arm].mean()) if arm.any() else None for arm in (trial.treated, ~trial.treated)]
    first, second = rates
    return {
        "treated": int(trial.treated.sum()),
        "control": int((~trial.treated).sum()),
        "distinct": len(np.unique(trial.customers)),
        "treated_bought": first,
        "control_bought": second,
        "difference": None if first is None or second is None else first - second,
    }


def _estimated(trial: Trial, predicted: Floats, robust: Floats, known: Floats | None, seed: int) -> dict[str, Any]:
    """Return the average effect and that of each tenth."""
    of_tenth = np.eye(10)[tenths(predicted)].T
    groups = np.vstack([np.ones(len(trial)), of_tenth])

    def means(times: Floats) -> Floats:
        counted = groups * times
        return np.asarray(counted @ robust / np.maximum(counted.sum(axis=1), 1e-12))

    found = bootstrap(means, trial, _REPEATS, numpy_stream(seed, "campaign effect", "average"))
    share = groups / np.maximum(groups.sum(axis=1, keepdims=True), 1)
    rows = [
        {
            **vars(interval),
            "predicted": float(weights @ predicted),
            "true": None if known is None else float(weights @ known),
        }
        for interval, weights in zip(found, share, strict=True)
    ]
    return {"average": rows[0], "tenths": rows[1:]}


def _targeting(trial: Trial, scores: Mapping[str, Floats], seed: int) -> dict[str, Any]:
    def measured(times: Floats) -> Floats:
        found = []
        for ranked in scores.values():
            totals = Totals.of(ranked, trial, times)
            found.append([qini(totals), auuc(totals), uplift_at(totals, 0.1), uplift_at(totals, 0.3)])
        table = np.array(found)
        names = list(scores)
        above = [table[0, 0] - table[names.index(other), 0] for other in ("response", "random")]
        return np.append(table.ravel(), above)

    found = bootstrap(measured, trial, _REPEATS, numpy_stream(seed, "campaign effect", "targeting"))
    of_name = [found[at : at + len(_METRICS)] for at in range(0, len(scores) * len(_METRICS), len(_METRICS))]
    return {
        "rankings": {
            name: {metric: vars(one) for metric, one in zip(_METRICS, own, strict=True)}
            for name, own in zip(scores, of_name, strict=True)
        },
        "qini_above": {name: vars(one) for name, one in zip(("response", "random"), found[-2:], strict=True)},
    }


def _shown(interval: Mapping[str, float]) -> str:
    value, low, high = (number(interval[key], 3) for key in ("value", "low", "high"))
    return f"{value} ({low} to {high})"
