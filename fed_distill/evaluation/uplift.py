"""Metrics of uplift: who bought because of a campaign, judged from who was treated and who bought.

No customer's effect is observed, so that a ranking of customers is judged by groups: those with the highest scores,
treated ones against others. Several definitions are in use (Devriendt, Van Belle, Guns and Verbeke 2020, "Learning to
rank for uplift modeling", section 3, compares them). Here

- the *Qini curve* is Radcliffe's (2007, "Using control groups to target on predicted lift"; also Radcliffe and Surry
  2011, section 2): of the customers with the highest scores, those who bought among the treated, less those among the
  others scaled to the number of treated, per treated customer. The *Qini coefficient* is the area between it and the
  straight line to its end, which is random targeting. It is not divided by the area of a perfect ranking, since which
  ranking is perfect is not known;
- the *uplift curve* is the difference in response of the two arms times the share of customers (Gutierrez and Gérardy
  2017, "Causal inference and uplift modelling: a review of the literature", section 4), and *AUUC* the area under it.

Both are in purchases per customer. Where treatment was not assigned at random, customers have the weight 1 / e(x) if
treated and 1 / (1 - e(x)) if not, which makes the arms alike in everything that the propensity e(x) is a function of
(Hirano, Imbens and Ridder 2003). With equal propensities, both curves are the unweighted ones.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

CLIP = 0.05
"""Propensities are clipped to [CLIP, 1 - CLIP], or few customers with large weights decide everything."""


@dataclass(frozen=True)
class Trial:
    """What happened to ``n`` customers.

    treated, bought: bool ``[n]``. propensity: probability of the treatment ``[n]``, strictly between 0 and 1.
    customers: int64 ``[n]``; rows of one customer are drawn together by the bootstrap.
    """

    treated: Flags
    bought: Flags
    propensity: Floats
    customers: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        if len({len(self.treated), len(self.bought), len(self.propensity), len(self.customers)}) != 1:
            raise ValueError("the columns of a trial have different lengths")
        if not ((self.propensity > 0) & (self.propensity < 1)).all():
            raise ValueError("a propensity is not strictly between 0 and 1: clip it")

    def __len__(self) -> int:
        return len(self.treated)

    @property
    def has_both_arms(self) -> bool:
        """Whether there are treated customers and others."""
        return bool(self.treated.any()) and not bool(self.treated.all())

    @property
    def weights(self) -> Floats:
        """Inverse probability of what happened to each customer ``[n]``."""
        return 1.0 / np.where(self.treated, self.propensity, 1.0 - self.propensity)


@dataclass(frozen=True)
class Totals:
    """Sums over the customers with the highest scores, each ``[points]``, from none to all; equal scores are one step.

    share: of all customers. treated, control: weights of the arms. treated_bought, control_bought: of those who bought.
    """

    share: Floats
    treated: Floats
    control: Floats
    treated_bought: Floats
    control_bought: Floats

    @classmethod
    def of(cls, scores: Floats, trial: Trial, times: Floats | None = None) -> "Totals":
        """Sum over ``trial`` by decreasing ``scores`` ``[n]``; ``times`` ``[n]``: how often each customer counts."""
        drawn = np.ones(len(trial)) if times is None else times
        order = np.argsort(-scores, kind="stable")
        last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))

        def total(values: Floats) -> Floats:
            return np.append(0.0, np.cumsum(values[order])[last])

        weights = trial.weights * drawn
        treated, control = weights * trial.treated, weights * ~trial.treated
        return cls(
            total(drawn) / drawn.sum(),
            total(treated),
            total(control),
            total(treated * trial.bought),
            total(control * trial.bought),
        )

    def at(self, share: float) -> "Totals":
        """Return the sums over a share of the customers, ``[1]``; of equal scores, customers are taken at random."""
        asked = np.array([share])
        return Totals(
            asked,
            *(
                np.interp(asked, self.share, values)
                for values in (self.treated, self.control, self.treated_bought, self.control_bought)
            ),
        )

    @property
    def difference(self) -> Floats:
        """Response of the treated less that of the others ``[points]``; 0 where an arm is empty."""
        both = (self.treated > 0) & (self.control > 0)
        zero = np.zeros(len(self.share))
        return np.divide(self.treated_bought, self.treated, out=zero.copy(), where=both) - np.divide(
            self.control_bought, self.control, out=zero.copy(), where=both
        )


def qini_curve(totals: Totals) -> Floats:
    """Return Radcliffe's incremental purchases, per treated customer ``[points]``; of an empty arm nothing is taken."""
    scale = np.divide(totals.treated, totals.control, out=np.zeros(len(totals.share)), where=totals.control > 0)
    curve: Floats = (totals.treated_bought - totals.control_bought * scale) / totals.treated[-1]
    return curve


def uplift_curve(totals: Totals) -> Floats:
    """Return the incremental purchases per customer if that share of customers is treated ``[points]``."""
    return totals.difference * totals.share


def qini(totals: Totals) -> float:
    """Return the Qini coefficient: the area between the Qini curve and the straight line to its end."""
    curve = qini_curve(totals)
    return _area(totals.share, curve) - float(curve[-1]) / 2


def auuc(totals: Totals) -> float:
    """Return the area under the uplift curve; that of random targeting is half of the average effect."""
    return _area(totals.share, uplift_curve(totals))


def uplift_at(totals: Totals, share: float) -> float:
    """Return the difference in response of the arms among a ``share`` of the customers, those of the highest scores."""
    return float(totals.at(share).difference[0])


def doubly_robust(trial: Trial, without: Floats, treated: Floats) -> Floats:
    """Return a value of each customer ``[n]`` whose mean over any group estimates the group's average effect.

    The augmented inverse-propensity-weighted score (Robins, Rotnitzky and Zhao 1994): it is right if either the
    propensities or the predicted responses are.

    :param without: predicted response without treatment μ_0(x) ``[n]``, of a model that was trained on others
    :param treated: predicted response to the treatment μ_1(x) ``[n]``
    """
    own = np.where(trial.treated, treated, without)
    sign = np.where(trial.treated, 1.0, -1.0)
    return treated - without + sign * trial.weights * (trial.bought - own)


@dataclass(frozen=True)
class Interval:
    """An estimate with a 95 % interval."""

    value: float
    low: float
    high: float

    def covers(self, value: float) -> bool:
        """Whether ``value`` is within the interval."""
        return self.low <= value <= self.high


def bootstrap(
    statistic: Callable[[Floats], Floats], trial: Trial, repeats: int, rng: np.random.Generator
) -> list[Interval]:
    """Return each value of ``statistic`` with the 2.5th and 97.5th percentiles over resampled customers.

    Efron and Tibshirani 1993, section 13.3 (percentile intervals); rows of one customer are drawn together. A resample
    without one of the arms, which has no effect, is drawn again.

    :param statistic: returns ``[values]`` for how often each row counts, float64 ``[n]``
    :param trial: the customers, of both arms
    :param repeats: number of resamples
    :param rng: draws them
    :raises ValueError: the trial has one arm only
    """
    if not trial.has_both_arms:
        raise ValueError("a trial with one arm has no effect to resample")
    distinct, of_row = np.unique(trial.customers, return_inverse=True)
    share = np.full(len(distinct), 1.0 / len(distinct))
    value = statistic(np.ones(len(trial)))

    def times() -> Floats:
        while True:
            found = rng.multinomial(len(distinct), share)[of_row].astype(np.float64)
            treated = trial.treated[found > 0]
            if treated.any() and not treated.all():
                return found

    drawn = np.stack([statistic(times()) for _ in range(repeats)])
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    return [Interval(*(float(part[at]) for part in (value, low, high))) for at in range(len(value))]


def tenths(scores: Floats) -> npt.NDArray[np.int64]:
    """Return the tenth of each customer by decreasing score, 0 to 9, int64 ``[n]``; ties are in the given order."""
    found = np.empty(len(scores), dtype=np.int64)
    found[np.argsort(-scores, kind="stable")] = 10 * np.arange(len(scores)) // max(len(scores), 1)
    return found


@dataclass(frozen=True)
class Overlap:
    """How alike the arms are.

    edges: of ten equal bins of the propensity ``[11]``. treated, control: customers by bin ``[10]``. clipped: share of
    customers whose propensity was clipped. effective: size of each arm, treated first, that an arm of equal weights
    would need for the same precision (Kish 1965): far below its size, few customers decide.
    """

    edges: list[float]
    treated: list[int]
    control: list[int]
    clipped: float
    effective: tuple[float, float]

    @classmethod
    def of(cls, trial: Trial) -> "Overlap":
        """Describe the clipped propensities of ``trial``, which has both arms."""
        edges = np.linspace(0.0, 1.0, 11)
        treated, control = (
            np.histogram(trial.propensity[arm], edges)[0].tolist() for arm in (trial.treated, ~trial.treated)
        )
        outside = (trial.propensity <= CLIP) | (trial.propensity >= 1.0 - CLIP)
        weights = [trial.weights[arm] for arm in (trial.treated, ~trial.treated)]
        first, second = (float(own.sum() ** 2 / (own**2).sum()) for own in weights)
        return cls([round(float(edge), 1) for edge in edges], treated, control, float(outside.mean()), (first, second))


def _area(share: Floats, curve: Floats) -> float:
    return float(np.trapezoid(curve, share))
