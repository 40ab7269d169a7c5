"""Labels from clicks: the position-based model by hand, the likelihood by scipy, and what they must not change."""

import numpy as np
import pytest
from scipy.stats import binom

from fed_distill.config import DataConfig
from fed_distill.config.data import ClicksConfig
from fed_distill.data import load
from fed_distill.data.click_labels import attractiveness, displayed, labelled_by_clicks, most_likely
from fed_distill.data.examples import Examples
from fed_distill.data.tasks import MATCHING, RELEVANCE
from fed_distill.errors import ConfigError

OPTIONS = {"merchants": 12, "rows": 60, "products": 400}


def pairs(*found: tuple[str, str, int]) -> Examples:
    texts, titles, labels = zip(*found, strict=True)
    count = len(found)
    return Examples(texts, titles, np.array(labels), np.zeros(count, dtype=np.int64), ("shop",) * count)


def test_a_click_is_as_likely_as_in_the_paper() -> None:
    # Joachims et al. 2017: noise + (1 - noise) * (2^g - 1) / (2^3 - 1), for exact, substitute, complement, irrelevant
    expected = [1.0, 0.1 + 0.9 * 3 / 7, 0.1 + 0.9 * 1 / 7, 0.1]
    assert attractiveness(RELEVANCE, 0.1) == pytest.approx(expected)


def test_products_are_shown_by_how_much_their_words_share_with_the_query() -> None:
    examples = pairs(
        ("red lamp", "green chair", 3),
        ("blue lamp", "blue lamp", 0),
        ("red lamp", "red lamp", 0),
        ("red lamp", "red lamp large", 1),
        ("blue lamp", "table", 3),
    )
    assert displayed(examples).tolist() == [3, 1, 1, 2, 2]


def test_the_label_is_the_most_likely_grade() -> None:
    rng = np.random.default_rng(0)
    sessions, probabilities = 12, rng.uniform(0.01, 0.99, size=(200, 4))
    clicks = rng.integers(0, sessions + 1, size=200)
    expected = np.argmax(binom.logpmf(clicks[:, None], sessions, probabilities), axis=1)
    assert most_likely(clicks, sessions, probabilities).tolist() == expected.tolist()


def test_certain_and_impossible_clicks_have_a_likelihood() -> None:
    certain = np.array([[1.0, 0.5, 0.0]] * 3)
    assert most_likely(np.array([4, 2, 0]), 4, certain).tolist() == [0, 1, 2]


def many(count: int) -> Examples:
    """Queries with four products each, the third of which is exact: position bias hides it."""
    titles = ("lamp {0}", "lamp {0} large", "light", "sofa")
    grades = (1, 2, 0, 3)
    rows = [
        (f"lamp {n}", title.format(n), grade) for n in range(count) for title, grade in zip(titles, grades, strict=True)
    ]
    return pairs(*rows)


def test_many_sessions_tell_the_grades_only_if_the_bias_is_accounted_for() -> None:
    examples = many(50)
    told = ClicksConfig(sessions=5000, bias=1.0, noise=0.1)
    assert labelled_by_clicks(examples, RELEVANCE, told, "shop", 0).labels.tolist() == examples.labels.tolist()
    naive = told.model_copy(update={"corrected": False})
    biased = labelled_by_clicks(examples, RELEVANCE, naive, "shop", 0).labels
    assert not np.any(biased[2::4] == 0)  # the exact product, seen every third time, looks like a substitute
    without_bias = naive.model_copy(update={"bias": 0.0})
    assert labelled_by_clicks(examples, RELEVANCE, without_bias, "shop", 0).labels.tolist() == examples.labels.tolist()


def test_few_sessions_are_noisy() -> None:
    examples = many(50)
    labels = labelled_by_clicks(examples, RELEVANCE, ClicksConfig(sessions=3), "shop", 0).labels
    wrong = float(np.mean(labels != examples.labels))
    assert 0.1 < wrong < 0.7


def config(**changes: object) -> DataConfig:
    return DataConfig.model_validate({"min_rows": 20, "proxy_size": 60, "options": OPTIONS, **changes})


def test_clients_labels_are_replaced_and_nothing_else() -> None:
    whole, data = load(config()), load(config(clicks={"sessions": 5}))
    changed = 0
    for name, merchant in data.merchants.items():
        before = whole.merchants[name]
        assert (merchant.train.texts, merchant.train.pairs) == (before.train.texts, before.train.pairs)
        changed += int(np.sum(merchant.train.labels != before.train.labels))
        assert merchant.valid.labels.tolist() == before.valid.labels.tolist()
        assert merchant.test.labels.tolist() == before.test.labels.tolist()
    assert changed
    assert data.public.labels.tolist() == whole.public.labels.tolist()
    again = load(config(clicks={"sessions": 5}))
    assert all(np.array_equal(again.merchants[n].train.labels, one.train.labels) for n, one in data.merchants.items())


def test_a_task_without_grades_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"data\.clicks\.sessions requires graded examples, which task matching"):
        labelled_by_clicks(pairs(("a", "b", 0)), MATCHING, ClicksConfig(sessions=1), "shop", 0)


def test_real_sites_have_labels_of_their_own() -> None:
    with pytest.raises(ConfigError, match=r"data\.clicks is for simulations"):
        load(config(clients="elsewhere", clicks={"sessions": 5}))
