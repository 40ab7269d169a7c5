"""Build ``summary.json`` from the outcomes of all seeds: means, 95 % intervals and derived results.

Its first level is schema 1, a stable interface for other programs. Undefined values are null, never NaN, with a note if
they need an explanation. For a private run it contains no exact sizes of merchants' data, and entries that are not
covered by the guarantee are marked (``disclosure``).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fed_distill.config import UNPROTECTED, Experiment, is_protected
from fed_distill.data.examples import Task
from fed_distill.data.frames import dataset_name
from fed_distill.evaluation.cold_start import as_table
from fed_distill.evaluation.metrics import SCORES, worst_merchant
from fed_distill.evaluation.shares import YARDSTICKS, Share, gap_closed, retention
from fed_distill.evaluation.statistics import Estimate, Sample, estimate, worst_tenth
from fed_distill.mechanisms.at_merchants import AtMerchants
from fed_distill.mechanisms.lookup import mechanism_of
from fed_distill.privacy.disclosure import coarse, is_private, protected, without_sizes
from fed_distill.reporting.answers import answers
from fed_distill.reporting.coding import beside_uncoded
from fed_distill.reporting.differences import REFERENCES, added, column, family, sample_of, summed
from fed_distill.reporting.outcome import Outcome
from fed_distill.storage.versions import versions

SCHEMA = 1


def summarize(
    experiment: Experiment,
    task: Task,
    teacher: Mapping[str, float | None],
    student_parameters: int,
    outcomes: Sequence[Outcome],
    merchants: int,
    seconds: float,
    speed: Mapping[str, float] | None = None,
    account: Mapping[str, Any] | None = None,
    records: Sequence[Mapping[str, Any]] = (),
    byzantine: Mapping[int, Sequence[str]] | None = None,
    chance: Mapping[str, float | None] | None = None,
    confusion: Sequence[Sequence[int]] | None = None,
) -> dict[str, Any]:
    """Return the summary of a finished run, JSON-serializable.

    ``interval`` has the half-widths of 95 % intervals, and ``interval_covers`` what those of the headline cover:
    training seeds, test data, or both (``evaluation.statistics``); those of other metrics cover training seeds only.
    ``above`` has the paired differences of a row to the controls ``server`` and ``fedavg``, with p-values adjusted for
    all rows of the run. ``adds`` is what the teacher and federation add (``differences.added``). ``retention`` and
    ``gap_closed`` are ratios of means, null with a note where their denominator is not clear of noise
    (``evaluation.shares``). Accuracies by merchant are averaged over the seeds before the worst merchant is selected;
    ``worst_tenth`` is the 10th percentile of the accuracies shrunk towards their mean.

    :param experiment: the experiment
    :param task: the task
    :param teacher: the teacher's metrics on the common test set, and its ``parameters``
    :param confusion: counts of the test examples by true and predicted class, of the first seed's student
    :param chance: scores of a model that has learned nothing, on the common test set (``shares.chance_scores``)
    :param student_parameters: number of weights of the student
    :param outcomes: of all controls and federations with all seeds; the main federation's become ``student``
    :param merchants: number of merchants
    :param seconds: duration of the run
    :param speed: result of ``reporting.speed.speed``
    :param account: ``FederatedData.account``, included completely only without privacy
    :param records: records of ``metrics.jsonl``, for the participation by federation (``answers``)
    :param byzantine: Byzantine merchants by seed, which are excluded from results by merchant
    """
    controls = _by_name(outcomes, "control")
    federations = _by_name(outcomes, "federation")
    main = experiment.federation.title
    if main not in federations:
        raise ValueError(f"no outcome of the main federation {main!r} among {sorted(federations)}")
    private = is_private(_privacy(federations[main]))
    data = dict(account or {})
    measure = _Measure(task, controls, teacher.get(task.headline), (chance or {}).get(task.headline), private)
    all_rows = {("control", name): units for name, units in controls.items()}
    all_rows |= {("federation", title): units for title, units in federations.items()}
    above = {name: family(all_rows, ("control", name), task.headline) for name in REFERENCES}
    sums = {key: found for key, units in all_rows.items() if (found := summed(units)) is not None}
    sums_above = family(sums, ("control", "server"), task.headline)

    def row(kind: str, name: str) -> dict[str, Any]:
        found = measure.row(all_rows[kind, name])
        if found["with_bm25"] is not None:
            found["with_bm25"]["above_server"] = sums_above.get((kind, name))
        return {**found, "above": {reference: rows.get((kind, name)) for reference, rows in above.items()}}

    control_rows = {name: row("control", name) for name in controls}
    federation_rows = {
        title: {
            **row("federation", title),
            "adaptation": _adaptation(units, private),
            "privacy": _with_groups(_privacy(units), experiment, data),
        }
        for title, units in federations.items()
    }
    for title, coding in beside_uncoded(experiment, federation_rows, task.headline).items():
        if title in federation_rows:
            federation_rows[title]["coding"] = coding
    student = federation_rows[main]
    return {
        "schema": SCHEMA,
        "name": experiment.name,
        "dataset": experiment.data.dataset,
        "dataset_name": dataset_name(experiment.data),
        "task": task.name,
        "headline": task.headline,
        "chance": measure.chance,
        "positive": task.positive,
        "method": experiment.federation.method,
        "federation": main,
        "merchants": merchants,
        "rounds": experiment.federation.rounds,
        "seed": experiment.seed,
        "seeds": [unit.seed for unit in federations[main]],
        "seconds": seconds,
        "teacher": {name: teacher.get(name) for name in ("parameters", *SCORES)},
        "student": {
            "parameters": student_parameters,
            **{name: student[name] for name in (*SCORES, "merchant_accuracy", "worst_merchant", "worst_tenth")},
            **{name: student[name] for name in ("cold", "with_bm25")},
        },
        "controls": {
            name: {key: value for key, value in one.items() if key not in ("interval", "by_seed")}
            for name, one in control_rows.items()
        },
        "retention": student["retention"],
        "gap_closed": student["gap_closed"],
        "bytes": student["bytes"],
        "privacy": {**student["privacy"], "audit": {"auc": None, "epsilon_lower_bound": None}},
        "federations": federation_rows,
        "intervals": {
            "student": student["interval"],
            "controls": {name: one["interval"] for name, one in control_rows.items()},
        },
        "interval_covers": student["interval_covers"],
        "adds": added(controls, federations[main], experiment.federation.start, task.headline, above),
        "adaptation": student["adaptation"],
        "classes": list(task.classes),
        "confusion": confusion,
        "levels": {name: measure.level(units) for name, units in _by_name(outcomes, "level").items()},
        "speed": dict(speed) if speed is not None else None,
        "data": without_sizes(data) if private else data,
        "answers": answers(records),
        "byzantine": _byzantine(experiment, byzantine or {}),
        "by_merchant": {
            "protected": False if private else None,
            "counts": None if private else dict(federations[main][0].merchant_counts),
            "controls": {
                name: _rounded_if_private(_merchant_means(units), private) for name, units in controls.items()
            },
            "federations": {
                title: _rounded_if_private(_merchant_means(units), private) for title, units in federations.items()
            },
        },
        "versions": versions(),
    }


def _byzantine(experiment: Experiment, byzantine: Mapping[int, Sequence[str]]) -> dict[str, Any] | None:
    """The attack and the Byzantine merchants, by seed; None where there are none."""
    config = experiment.byzantine
    if not config.fraction:
        return None
    names_by_seed = {str(seed): list(names) for seed, names in byzantine.items()}
    return {
        "attack": config.attack,
        "options": dict(config.options),
        "fraction": config.fraction,
        "merchants": names_by_seed,
    }


def _by_name(outcomes: Sequence[Outcome], kind: str) -> dict[str, list[Outcome]]:
    found: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.kind == kind:
            units = found.setdefault(outcome.name, [])
            if any(unit.seed == outcome.seed for unit in units):
                raise ValueError(f"two outcomes of {kind} {outcome.name!r} on seed {outcome.seed}")
            units.append(outcome)
    return {name: sorted(units, key=lambda unit: unit.seed) for name, units in found.items()}


@dataclass(frozen=True)
class _Measure:
    """Computes the lines of the comparison. teacher, chance: headline scores of the teacher and of no model."""

    task: Task
    controls: Mapping[str, Sequence[Outcome]]
    teacher: float | None
    chance: float | None
    private: bool

    def row(self, units: Sequence[Outcome]) -> dict[str, Any]:
        """Return means over the seeds, half-widths of their intervals, and values by seed.

        protected: see ``disclosure.protected``; merchants' own test scores are never covered.
        """
        by_seed = [_of_seed(unit, self.private) for unit in units]
        found = {name: _estimated(sample_of(units, name)) for name in SCORES}
        found |= {
            name: _estimated(column([seed[name] for seed in by_seed])) for name in ("merchant_accuracy", "seconds")
        }
        shares = {
            "retention": self._retention(units),
            "gap_closed": self._gap_closed(units, self.task.headline),
            "gap_closed_auc": self._gap_closed(units, "auc"),
        }
        notes = {name: share.reason for name, share in shares.items() if share.reason}
        if unheard := [f"seed {unit.seed}: {', '.join(unit.unheard)}" for unit in units if unit.unheard]:
            notes["merchant_accuracy"] = "; ".join(unheard)
        means, counts = _merchant_means(units), units[0].merchant_counts
        tenth, headline = worst_tenth(means, counts), found[self.task.headline]
        return {
            **{name: one and one.value for name, one in found.items()},
            **{name: share.value for name, share in shares.items()},
            "worst_merchant": _worst(means, counts, self.private),
            "worst_tenth": coarse(tenth) if self.private and tenth is not None else tenth,
            "own_students": _own_students(units, self.private),
            "protected": protected(units[0].name, units[0].kind, self.private),
            "rounds": units[0].rounds,
            "bytes": {
                "downlink_per_merchant_round": round(sum(unit.downlink_bytes for unit in units) / len(units)),
                "uplink_per_merchant_round": round(sum(unit.uplink_bytes for unit in units) / len(units)),
            },
            "validation": _mean_metrics([unit.validation for unit in units]),
            "cold": _mean_metrics([unit.cold for unit in units]),
            "with_bm25": _with_bm25(units, self.task.headline),
            **_cold_start(units),
            "interval": {
                **{name: one and one.half_width for name, one in found.items()},
                **{name: share.half_width for name, share in shares.items()},
            },
            "interval_covers": list(headline.covers) if headline else [],
            "notes": notes,
            "by_seed": by_seed,
        }

    def level(self, units: Sequence[Outcome]) -> dict[str, Any]:
        """Return a level of the chain from teacher to student: means over the seeds and half-widths."""
        found = {name: _estimated(sample_of(units, name)) for name in SCORES}
        kept = self._retention(units)
        return {
            "parameters": units[0].metrics["parameters"],
            **{name: one and one.value for name, one in found.items()},
            "retention": kept.value,
            "interval": {**{name: one and one.half_width for name, one in found.items()}, "retention": kept.half_width},
        }

    def _retention(self, units: Sequence[Outcome]) -> Share:
        return retention(sample_of(units, self.task.headline), self.teacher, self.chance)

    def _gap_closed(self, units: Sequence[Outcome], metric: str) -> Share:
        """Return the gap closed relative to the controls with the same seeds; empty for controls without federation."""
        if units[0].kind == "control" and units[0].name != "fedavg":
            return Share(None)
        seeds = [unit.seed for unit in units]
        same = {
            name: sample_of(own, metric)
            for name, own in self.controls.items()
            if name in YARDSTICKS and [unit.seed for unit in own] == seeds
        }
        return gap_closed(sample_of(units, metric), same)


def _cold_start(units: Sequence[Outcome]) -> dict[str, Any]:
    """Return metrics of cold and warm products and customers, where they were measured."""
    found = as_table({name: _mean([unit.metrics.get(name) for unit in units]) for name in units[0].metrics})
    return {"cold_start": found} if found else {}


def _with_bm25(units: Sequence[Outcome], metric: str) -> dict[str, Any] | None:
    """Return the headline metric of the sum with BM25, the half-width of its interval, and the weight of BM25 with the
    first seed's student, which the run stores."""
    sums, first = summed(units), units[0].with_bm25
    found = None if sums is None else _estimated(sample_of(sums, metric))
    if found is None or first is None:
        return None
    return {metric: found.value, "half_width": found.half_width, "weight": first["weight"]}


def _of_seed(unit: Outcome, private: bool) -> dict[str, Any]:
    accuracies = list(unit.merchant_accuracy.values())
    return {
        "seed": unit.seed,
        **{name: unit.metrics.get(name) for name in SCORES},
        "merchant_accuracy": _mean(accuracies),
        "worst_merchant": _worst(unit.merchant_accuracy, unit.merchant_counts, private),
        "seconds": unit.seconds,
    }


def _adaptation(units: Sequence[Outcome], private: bool) -> dict[str, Any] | None:
    """Return means before and after adaptation, notes by seed, and accuracies before and after personal adaptation."""
    before = _mean_metrics([unit.before_adaptation for unit in units])
    personal = [unit for unit in units if unit.personal_accuracy]
    if before is None and not personal:
        return None
    counts = personal[0].merchant_counts if personal else {}
    return {
        "before": before,
        "after": _mean_metrics([unit.metrics for unit in units]),
        "notes": {str(unit.seed): list(unit.adaptation) for unit in units},
        "personal": None
        if not personal
        else {
            "protected": False if private else None,
            "before": _mean_and_worst([unit.merchant_accuracy for unit in personal], counts, private),
            "after": _mean_and_worst([unit.personal_accuracy for unit in personal], counts, private),
        },
    }


def _own_students(units: Sequence[Outcome], private: bool) -> dict[str, Any] | None:
    """Return accuracies of the students that merchants keep, each on its merchant's own test set, and the mean of the
    global student's at these merchants; None without any."""
    if not any(unit.own_accuracy for unit in units):
        return None
    own, of_global = [unit.own_accuracy for unit in units], _merchant_means(units)
    found = _mean_and_worst(own, units[0].merchant_counts, private)
    return {**found, "global_mean": _mean([of_global.get(name) for name in _means_by_key(own)])}


def _privacy(units: Sequence[Outcome]) -> dict[str, Any]:
    """Return the account of the seed with the highest cost."""
    known = [unit.privacy for unit in units if unit.privacy is not None]
    if not known:
        return {"unit": UNPROTECTED, "epsilon": None, "delta": None}
    return dict(max(known, key=lambda one: math.inf if one["epsilon"] is None else one["epsilon"]))


def _with_groups(privacy: dict[str, Any], experiment: Experiment, account: Mapping[str, Any]) -> dict[str, Any]:
    """Add the size of the largest group of a merchant's examples, and the number of merchants that train on one group,
    which are known in a simulation only."""
    known = account.get("largest_group")
    mechanism = mechanism_of(experiment) if is_protected(privacy["unit"]) else None
    if not isinstance(mechanism, AtMerchants) or not privacy.get("reproducible_noise") or known is None:
        return privacy
    kind = mechanism.kind() or "group"
    shared = account.get("merchants_of_a_group", {}).get(kind) if mechanism.grouped else None
    return {**privacy, "largest_group": known.get(kind), "merchants_of_a_group": shared}


def _mean_and_worst(
    of_seeds: Sequence[Mapping[str, float]], counts: Mapping[str, int], private: bool
) -> dict[str, Any]:
    means = _means_by_key(of_seeds)
    return {"mean": _mean(list(means.values())), "worst_merchant": _worst(means, counts, private)}


def _worst(accuracies: Mapping[str, float], counts: Mapping[str, int], private: bool) -> dict[str, Any] | None:
    worst = worst_merchant(accuracies, counts)
    if worst is None:
        return None
    return {"merchant": worst.merchant, "accuracy": coarse(worst.accuracy) if private else worst.accuracy}


def _rounded_if_private(accuracies: Mapping[str, float], private: bool) -> dict[str, float]:
    """Return accuracies by merchant, rounded in a private run."""
    return {name: coarse(value) if private else value for name, value in accuracies.items()}


def _merchant_means(units: Sequence[Outcome]) -> dict[str, float]:
    return _means_by_key([unit.merchant_accuracy for unit in units])


def _means_by_key(tables: Sequence[Mapping[str, float]]) -> dict[str, float]:
    shared = [key for key in tables[0] if all(key in table for table in tables)]
    return {key: sum(table[key] for table in tables) / len(tables) for key in shared}


def _mean_metrics(of_seeds: Sequence[Mapping[str, float | None] | None]) -> dict[str, float | None] | None:
    known = [metrics for metrics in of_seeds if metrics is not None]
    if len(known) < len(of_seeds):
        return None
    return {name: _mean([metrics.get(name) for metrics in known]) for name in SCORES}


def _known(values: Sequence[float | None]) -> list[float] | None:
    """Return the values, or None if one is undefined, because a mean over some seeds would be biased."""
    known = [value for value in values if value is not None]
    return known if known and len(known) == len(values) else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = _known(values)
    return None if known is None else sum(known) / len(known)


def _estimated(sample: Sample | None) -> Estimate | None:
    return None if sample is None else estimate(sample)
