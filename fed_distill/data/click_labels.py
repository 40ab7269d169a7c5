"""Labels that merchants derive from clicks, as most search logs give them: biased by position, and noisy.

A simulation of clicks on graded examples, as in Joachims, Swaminathan and Schnabel, "Unbiased learning-to-rank with
biased feedback", WSDM 2017, section 6. Each query is shown ``sessions`` times with its products in a fixed order, that
of a lexical ranker. By the position-based model (Richardson et al., WWW 2007) a customer sees position k with
probability (1 / k)^bias, and clicks a seen product with probability noise + (1 - noise) * (2^g - 1) / (2^G - 1), with
grades g from 0 (irrelevant) to G.

A product's label is the grade under which its number of clicks is most likely. With ``corrected``, the likelihood knows
the probability that a position was seen (inverse propensity weighting is the same for a mean); without, a low position
looks like a low grade.
"""

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from fed_distill.config.data import ClicksConfig
from fed_distill.data.examples import Examples, Task
from fed_distill.data.labeled import factorize
from fed_distill.errors import ConfigError
from fed_distill.seeds import numpy_stream
from fed_distill.text.hashing import bag_rows

_ROWS = 2**15


def labelled_by_clicks(examples: Examples, task: Task, config: ClicksConfig, merchant: str, seed: int) -> Examples:
    """Return graded ``examples`` of a merchant with labels derived from simulated clicks.

    :param seed: ``data.seed``; with ``merchant`` it determines the random stream
    :raises ConfigError: the task has no grades
    """
    if task.gains is None:
        raise ConfigError(
            f"data.clicks.sessions requires graded examples, which task {task.name} does not have: remove it"
        )
    positions = displayed(examples)
    seen = (1.0 / positions) ** config.bias
    attractive = attractiveness(task, config.noise)
    rng = numpy_stream(seed, "clicks", merchant)
    clicks = rng.binomial(config.sessions, seen * attractive[examples.labels])
    known = seen if config.corrected else np.ones_like(seen)
    return replace(examples, labels=most_likely(clicks, config.sessions, known[:, None] * attractive))


def displayed(examples: Examples) -> npt.NDArray[np.int64]:
    """Return the position, from 1, of each pair among those of its query, by the number of features that the query
    shares with the title relative to the features of both (Jaccard); ties go to the first."""
    queries, titles = (bag_rows(texts, _ROWS) for texts in (examples.texts, examples.pairs or ()))
    similar = np.array([_jaccard(one, other) for one, other in zip(queries, titles, strict=True)])
    query = factorize(examples.texts)
    order = np.lexsort((-similar, query))
    starts = np.flatnonzero(np.append(True, np.diff(query[order]) > 0)) if len(order) else order
    lengths = np.diff(np.append(starts, len(order)))
    positions = np.empty(len(order), dtype=np.int64)
    positions[order] = np.arange(len(order)) - np.repeat(starts, lengths) + 1
    return positions


def attractiveness(task: Task, noise: float) -> npt.NDArray[np.float64]:
    """Return the probability of a click on a seen product by class, ``[classes]``."""
    assert task.gains is not None
    grades = np.unique(task.gains, return_inverse=True)[1]
    relevance = (2.0**grades - 1) / (2.0 ** grades.max() - 1)
    return np.asarray(noise + (1.0 - noise) * relevance)


def most_likely(
    clicks: npt.NDArray[np.int64], sessions: int, probabilities: npt.NDArray[np.float64]
) -> npt.NDArray[np.int64]:
    """Return the class ``[n]`` under which ``clicks`` ``[n]`` in ``sessions`` are most likely; ties go to the first.

    :param probabilities: of a click in a session, by class ``[n, classes]``
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        clicked = np.where(clicks[:, None] > 0, clicks[:, None] * np.log(probabilities), 0.0)
        passed = np.where(clicks[:, None] < sessions, (sessions - clicks[:, None]) * np.log1p(-probabilities), 0.0)
    return np.asarray(np.argmax(clicked + passed, axis=1), dtype=np.int64)


def _jaccard(one: npt.NDArray[np.int64], other: npt.NDArray[np.int64]) -> float:
    first, second = set(one[one > 0].tolist()), set(other[other > 0].tolist())
    return len(first & second) / max(len(first | second), 1)
