"""Evaluation of models of campaigns: trials of labelled examples, and the metric by which models are compared."""

import numpy as np
import numpy.typing as npt

from fed_distill.data.campaign_cells import bought_of, effects, treated_of
from fed_distill.data.examples import Examples
from fed_distill.evaluation.statistics import pseudo_values
from fed_distill.evaluation.uplift import CLIP, Totals, Trial, qini
from fed_distill.models.meta_learner import features
from fed_distill.models.uplift_learners import cross_fitted_propensity
from fed_distill.seeds import numpy_stream

BLOCKS = 200
"""Number of blocks of customers that are left out in turn, enough for a standard error."""


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


def qini_by_block(probabilities: npt.NDArray[np.floating], trial: Trial) -> list[float]:
    """Return a value for each block of customers, whose mean is the Qini coefficient and whose standard error is the
    Qini coefficient's by the jackknife (``pseudo_values``); empty if leaving out a block would empty an arm.

    Blocks are drawn at random, the same for all models, and their numbers of customers differ by at most one. There are
    at most ``BLOCKS``, since each takes a ranking of all customers. Rows of one customer are in one block.

    :param probabilities: of the cells, ``[n, 4]``
    """
    distinct, of_row = np.unique(trial.customers, return_inverse=True)
    count = min(BLOCKS, len(distinct))
    block = (numpy_stream(0, "Qini blocks").permutation(len(distinct)) % max(count, 1))[of_row]
    arms = [np.bincount(block[arm], minlength=count) for arm in (trial.treated, ~trial.treated)]
    if count < 2 or any((arm.sum() - arm == 0).any() for arm in arms):
        return []
    scores = effects(probabilities)
    order = np.argsort(-scores, kind="stable")  # once: sorted scores are ranked in linear time
    scores, block = scores[order], block[order]
    ranked = Trial(trial.treated[order], trial.bought[order], trial.propensity[order], trial.customers[order])
    without = [qini(Totals.of(scores, ranked, (block != one).astype(np.float64))) for one in range(count)]
    return pseudo_values(qini(Totals.of(scores, ranked)), np.array(without))
