"""Estimates of uplift from sparse features: two models, or the X-learner, with a model of the propensity.

Künzel, Sekhon, Bickel and Yu 2019, "Metalearners for estimating heterogeneous treatment effects using machine
learning", PNAS 116(10), in whose notation W is the treatment, Y the outcome and x the features:

- *T-learner*: μ_0(x) = E[Y(0) | x] is trained on the control arm and μ_1(x) = E[Y(1) | x] on the treated one, and
  τ_T(x) = μ_1(x) - μ_0(x).
- *X-learner*: each arm's effects are imputed by the other's model, D1_i = Y_i - μ_0(x_i) of treated customers and
  D0_i = μ_1(x_i) - Y_i of the others. τ_1 is trained on D1 and τ_0 on D0, and τ_X(x) = g(x) τ_0(x) + (1 - g(x)) τ_1(x),
  where g is the propensity e(x): where few customers were treated, μ_0 is the better model, and τ_1 rests on it.

All parts are linear: logistic regressions of Y and W, ridge regressions of the imputed effects, each with the
regularization that predicts best in cross-validation. They are scikit-learn's; what is kept of them is coefficients.

A regularized model errs towards the mean of what it is fitted to. An arm's mean is not everybody's if treatment is
confounded, and the difference of two such models has the confounding in it (Hahn, Murray and Carvalho 2020, section 4).
The customers of each arm therefore have the inverse of their arm's propensity as weights, as if everybody were in it.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.special import expit
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV, KFold, StratifiedKFold

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Learner = Literal["x", "t"]

PARTS = ("propensity", "without", "treated", "effect_of_control", "effect_of_treated")
"""Columns of the coefficients: logits of e, μ_0 and μ_1, and the effects τ_0 and τ_1."""
_FOLDS = 5
_INVERSE_PENALTIES = (0.1, 1.0, 10.0)


@dataclass(frozen=True)
class LinearFit:
    """A linear function of features: coefficients ``[features]`` and an intercept."""

    coefficients: Floats
    intercept: float

    def __call__(self, features: sparse.csr_array) -> Floats:
        """Return the values ``[n]`` of ``features`` ``[n, features]``."""
        return np.asarray(features @ self.coefficients + self.intercept, dtype=np.float64)


def logistic(features: sparse.csr_array, labels: Flags, weights: Floats | None = None) -> LinearFit:
    """Fit the logit of P(label | x) by logistic regression; with fewer than two of either label, the constant
    (k + 1/2) / (n + 1) (Krichevsky and Trofimov 1981). weights: of the rows ``[n]``."""
    folds = min(_FOLDS, int(labels.sum()), int((~labels).sum()))
    if folds < 2:
        share = (float(labels.sum()) + 0.5) / (len(labels) + 1)
        return LinearFit(np.zeros(features.shape[1]), float(np.log(share / (1.0 - share))))
    search = GridSearchCV(
        LogisticRegression(max_iter=1000),
        {"C": list(_INVERSE_PENALTIES)},
        scoring="neg_log_loss",
        cv=StratifiedKFold(folds, shuffle=True, random_state=0),
    )
    return _fitted(search, features, labels, weights)


def ridge(features: sparse.csr_array, values: Floats, weights: Floats | None = None) -> LinearFit:
    """Fit E[value | x] by ridge regression; of fewer than four values, their mean. weights: of the rows ``[n]``."""
    if len(values) < 4:
        return LinearFit(np.zeros(features.shape[1]), float(values.mean()) if len(values) else 0.0)
    search = GridSearchCV(
        Ridge(solver="sparse_cg"),
        {"alpha": [1.0 / weight for weight in _INVERSE_PENALTIES]},
        scoring="neg_mean_squared_error",
        cv=KFold(min(_FOLDS, len(values)), shuffle=True, random_state=0),
    )
    return _fitted(search, features, values, weights)


def fit(features: sparse.csr_array, treated: Flags, bought: Flags, clip: float) -> tuple[LinearFit, ...]:
    """Fit all parts of both learners, in the order of ``PARTS``.

    :param features: ``[n, features]``
    :param treated: W ``[n]``
    :param bought: Y ``[n]``
    :param clip: smallest propensity that a weight is the inverse of
    """
    propensity = cross_fitted_propensity(features, treated, clip)
    weights = 1.0 / np.where(treated, propensity, 1.0 - propensity)
    without, with_it = (logistic(features[arm], bought[arm], weights[arm]) for arm in (~treated, treated))
    imputed_treated = bought[treated] - expit(without(features[treated]))
    imputed_control = expit(with_it(features[~treated])) - bought[~treated]
    return (
        logistic(features, treated),
        without,
        with_it,
        ridge(features[~treated], imputed_control, weights[~treated]),
        ridge(features[treated], imputed_treated, weights[treated]),
    )


def cross_fitted_propensity(features: sparse.csr_array, treated: Flags, clip: float) -> Floats:
    """Return e(x) of each row ``[n]``, of a model that was fitted without it, clipped to [clip, 1 - clip].

    A model that was fitted on a row knows part of its treatment by heart, and would report less overlap than there is
    (Chernozhukov et al. 2018, section 1.1, cross-fitting).
    """
    found = np.empty(len(treated))
    folds = min(_FOLDS, len(treated))
    for rest, fold in KFold(folds, shuffle=True, random_state=0).split(np.arange(len(treated))):
        found[fold] = expit(logistic(features[rest], treated[rest])(features[fold]))
    return found.clip(clip, 1.0 - clip)


def _fitted(search: Any, features: sparse.csr_array, values: npt.NDArray[Any], weights: Floats | None) -> LinearFit:
    """Fit on the features that occur, which are few of a hashed table. Weights are scaled to a mean of 1, or they would
    change the penalty."""
    used = np.unique(features.indices)
    search.fit(features[:, used], values, sample_weight=None if weights is None else weights / weights.mean())
    coefficients = np.zeros(features.shape[1])
    coefficients[used] = np.ravel(search.best_estimator_.coef_)
    return LinearFit(coefficients, float(np.ravel(search.best_estimator_.intercept_)[0]))
