"""Evaluation of models of campaigns: trials of labelled examples, and the metric by which models are compared."""

import numpy as np
import numpy.typing as npt

from fed_distill.data.campaign_cells import bought_of, effects, treated_of
from fed_distill.data.examples import Examples
from fed_distill.evaluation.uplift import CLIP, Totals, Trial, qini
from fed_distill.models.meta_learner import features
from fed_distill.models.uplift_learners import cross_fitted_propensity


def trial_of(examples: Examples) -> Trial:
    """Return who was treated and who bought, with propensities that are estimated on these examples themselves.

    One model of the propensity judges all models of effects alike. It sees treatments but no outcome, and each row's
    is of a model that was fitted without that row.
    """
    treated = treated_of(examples.labels)
    propensity = cross_fitted_propensity(features(examples.texts, examples.pairs or ()), treated, CLIP)
    return Trial(treated, bought_of(examples.labels), propensity, examples.groups)


def qini_of(probabilities: npt.NDArray[np.floating], trial: Trial) -> float | None:
    """Return the Qini coefficient of the ranking by predicted effect; None if all customers are in one arm.

    :param probabilities: of the cells, ``[n, 4]``
    """
    return qini(Totals.of(effects(probabilities), trial)) if trial.has_both_arms else None
