"""A trial: a run that selects settings, by its score on validation examples.

All trials of tunings and of studies are made and scored here. Their data have no test examples (``data.scored_on``), so
that no trial can compute a test score.
"""

from collections.abc import Mapping
from typing import Any

from fed_distill.config import Experiment
from fed_distill.errors import ConfigError
from fed_distill.experiment.simulation import check_merchants


def trial_of(experiment: Experiment, changes: Mapping[str, Any]) -> Experiment:
    """Return ``experiment`` as a trial runs it: one federation without what is for a report only, and without test
    examples.

    :param changes: further changes, such as seeds
    :raises ConfigError: if the merchants are at real sites
    """
    check_merchants(experiment)
    return experiment.with_changes(
        {"repeats": 1, "controls": [], "compare": [], **changes, "data.scored_on": "validation"}
    )


def validation_score(
    summary: Mapping[str, Any], objective: str | None, control: str | None = None
) -> tuple[str, float | None]:
    """Return the objective of a trial, and its mean over the trial's seeds on validation examples; None if unknown.

    :param summary: the finished run's summary
    :param objective: a metric; None for the headline metric of the task
    :param control: score this control instead of the federation
    """
    metric = objective or str(summary["headline"])
    row = summary["federations"][summary["federation"]] if control is None else summary["controls"][control]
    value: float | None = (row["validation"] or {}).get(metric)
    return metric, value


def check_unprotected(title: str, experiment: Experiment) -> None:
    """Raise ConfigError for a private experiment: no single run's ledger covers the privacy cost of its trials.

    The best of many private runs reveals more than any one of them (Papernot and Steinke 2022, "Hyperparameter tuning
    with Rényi differential privacy").
    """
    privacy = experiment.privacy
    if privacy.protects:
        raise ConfigError(
            f"{title}: privacy.unit = {privacy.unit!r} cannot be tuned: each trial is a separate release, and "
            "selecting the best one reveals more than a single run. Set privacy.unit = 'none', tune on "
            "public data or in a simulation with other data, then run the best settings once with privacy"
        )
