"""Recommenders without trained weights, which any student has to beat: controls of tasks that read histories.

``popularity``: how often a product was bought. ``repeat``: what the customer bought most often comes first, and then
the popular (personal frequency before global frequency, the strongest simple rule for baskets in Li et al. 2023, "A
next basket recommendation reality check", ACM TOIS). ``item-knn``: the sum of the cosines of a product with those of
the history (Deshpande and Karypis 2004, "Item-based top-N recommendation algorithms", section 4.1, cosine).
"""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from scipy import sparse

from fed_distill.data.examples import Examples, Task
from fed_distill.data.tasks import HISTORY_SEPARATOR

Scores = npt.NDArray[np.float64]
Recommender = Callable[[Examples], Scores]
"""Returns a score of each (history, product) pair, float64 ``[n]``; higher is better."""


def popularity(train: Sequence[Examples], task: Task) -> Recommender:
    """Count how often each product was bought, over labelled ``train`` examples."""
    names, _, bought = _counted(train, task)
    counts = np.bincount(bought, minlength=len(names) + 1).astype(np.float64)
    return lambda examples: counts[_places(names, examples)]


def repeat(train: Sequence[Examples], task: Task) -> Recommender:
    """Rank by the number of times that a product is in the history, and products that are in it equally often by
    popularity."""
    popular = popularity(train, task)

    def scores(examples: Examples) -> Scores:
        pairs = zip(examples.texts, examples.pairs or (), strict=True)
        bought: dict[str, Counter[str]] = {}
        for text in set(examples.texts):
            bought[text] = Counter(text.split(HISTORY_SEPARATOR))
        again = np.array([bought[text][title] for text, title in pairs], dtype=np.float64)
        counts = popular(examples)
        return counts / (1.0 + counts) + again

    return scores


def item_knn(train: Sequence[Examples], task: Task) -> Recommender:
    """Compute the cosines of products: of how often one is bought with the other in the history."""
    names, histories, bought = _counted(train, task)
    chosen = sparse.csr_array((np.ones(len(bought)), (np.arange(len(bought)), bought)), shape=histories.shape)
    together = (chosen.T @ histories).tocsr()
    lengths = [np.sqrt(np.maximum(np.asarray(of.sum(axis=0)).ravel(), 1.0)) for of in (chosen, histories)]
    cosines = sparse.diags_array(1.0 / lengths[0]) @ together @ sparse.diags_array(1.0 / lengths[1])
    cosines = cosines.tocsr()

    def scores(examples: Examples) -> Scores:
        asked = _histories(names, examples)
        return np.asarray(cosines[_places(names, examples)].multiply(asked).sum(axis=1)).ravel()

    return scores


RECOMMENDERS = {"popularity": popularity, "repeat": repeat, "item-knn": item_knn}


def _counted(train: Sequence[Examples], task: Task) -> tuple[dict[str, int], sparse.csr_array, npt.NDArray[np.int64]]:
    """Return the number of each product, and of each purchase the history and the product bought."""
    purchases = [table.take(np.flatnonzero(table.labels == task.positive_index)) for table in train]
    every = Examples.concatenate(purchases)
    titles = dict.fromkeys(title for text in every.texts for title in text.split(HISTORY_SEPARATOR))
    names = {title: place for place, title in enumerate(dict.fromkeys([*titles, *(every.pairs or ())]))}
    return names, _histories(names, every), _places(names, every)


def _places(names: dict[str, int], examples: Examples) -> npt.NDArray[np.int64]:
    """Return the number of each candidate ``[n]``; that of a product that was never seen is ``len(names)``."""
    return np.array([names.get(title, len(names)) for title in examples.pairs or ()], dtype=np.int64)


def _histories(names: dict[str, int], examples: Examples) -> sparse.csr_array:
    """Return which known products each history has, 0 or 1, ``[n, len(names) + 1]``; the last column is empty."""
    found = [
        [names[title] for title in set(text.split(HISTORY_SEPARATOR)) if title in names] for text in examples.texts
    ]
    rows = np.repeat(np.arange(len(found)), [len(places) for places in found])
    columns = np.array([place for places in found for place in places], dtype=np.int64)
    return sparse.csr_array((np.ones(len(rows)), (rows, columns)), shape=(len(found), len(names) + 1))
