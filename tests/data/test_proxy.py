"""The proxy set is chosen as asked: how many, from where, and how spread."""

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from scipy.stats import entropy

from fed_distill.config import DataConfig
from fed_distill.data import load
from fed_distill.data.proxy import features, least_sure, spread
from fed_distill.errors import ConfigError

OPTIONS = {"merchants": 12, "rows": 60, "products": 400}


def config(**changes: Any) -> DataConfig:
    return DataConfig.model_validate({"min_rows": 20, "proxy_size": 60, "options": OPTIONS, **changes})


def largest_gap(points: np.ndarray[Any, Any], centres: list[int]) -> float:
    """The largest distance of any point from its nearest centre."""
    apart = np.linalg.norm(points[:, None] - points[None, centres], axis=2)
    return float(apart.min(axis=1).max())


def test_centres_are_at_most_twice_as_far_as_the_best_ones() -> None:
    """Gonzalez's bound, against all choices of three of twelve points; each centre is the farthest point by then."""
    for seed in range(20):
        points = np.random.default_rng(seed).normal(size=(12, 2)).astype(np.float32)
        chosen = spread(points, 3).tolist()
        best = min(largest_gap(points, list(centres)) for centres in combinations(range(12), 3))
        assert largest_gap(points, chosen) <= 2 * best + 1e-5
        for place in range(1, 3):
            gaps = np.linalg.norm(points[:, None] - points[None, chosen[:place]], axis=2).min(axis=1)
            assert gaps[chosen[place]] == pytest.approx(gaps.max(), rel=1e-4)


def test_equal_points_are_chosen_once_each() -> None:
    points = np.ones((5, 3), dtype=np.float32)
    assert sorted(spread(points, 5).tolist()) == [0, 1, 2, 3, 4]


def test_coverage_leaves_a_smaller_gap_than_chance() -> None:
    pool = load(config(proxy_size=240)).proxy  # what the 60 are chosen from
    points = features(pool, 0)
    places = {pair: row for row, pair in enumerate(zip(pool.texts, pool.pairs or (), strict=True))}
    gaps = {}
    for choice in ("random", "coverage"):
        proxy = load(config(proxy_choice=choice)).proxy
        assert len(proxy) == 60
        gaps[choice] = largest_gap(points, [places[pair] for pair in zip(proxy.texts, proxy.pairs or (), strict=True)])
    assert gaps["coverage"] < 0.95 * gaps["random"]


def test_features_of_like_texts_are_near() -> None:
    pool = load(config(task="category", options={**OPTIONS, "languages": ["en"]})).proxy
    points = features(pool, 0)
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), 1.0, rtol=1e-4)
    words = [set(text.lower().split()) for text in pool.texts]
    shared = {
        (one, other): len(words[one] & words[other]) / len(words[one] | words[other])
        for one, other in combinations(range(len(words)), 2)
    }
    likeness = [float(points[one] @ points[other]) for one, other in shared]
    assert np.corrcoef(likeness, list(shared.values()))[0, 1] > 0.5


def test_the_least_sure_have_the_highest_entropy() -> None:
    rows = np.random.default_rng(0).dirichlet(np.full(4, 0.5), size=50).astype(np.float32)
    rows[7], rows[8], rows[9] = (1, 0, 0, 0), (0.25, 0.25, 0.25, 0.25), (0.5, 0.5, 0, 0)
    chosen = least_sure(rows, 10)
    assert chosen.sum() == 10
    assert chosen[8]
    assert not chosen[7]
    assert entropy(rows[chosen], axis=1).min() >= entropy(rows[~chosen], axis=1).max() - 1e-6
    assert least_sure(np.full((5, 2), 0.5, dtype=np.float32), 2).tolist() == [True, True, False, False, False]


def test_what_a_teacher_chooses_among_is_what_chance_draws_first() -> None:
    """Four candidates for each place, of which the first are the random proxy set."""
    pool, drawn = load(config(proxy_choice="uncertainty")).proxy, load(config(proxy_size=240)).proxy
    assert (pool.texts, pool.pairs) == (drawn.texts, drawn.pairs)


def test_a_smaller_proxy_set_changes_no_other_part() -> None:
    large, small = load(config()), load(config(proxy_size=10))
    assert (len(large.proxy), len(small.proxy)) == (60, 10)
    assert large.test.texts == small.test.texts
    assert large.public.texts == small.public.texts


def test_a_proxy_set_out_of_domain_takes_nothing_from_the_others() -> None:
    """Titles of one department alone, none of which is learned from with its label."""
    plain, data = (load(config(task="category", proxy_size=15, **more)) for more in ({}, {"proxy_domains": ["phones"]}))
    labels = {text: int(label) for part in (plain.public, plain.test) for text, label in _labelled(part)}
    place = data.task.classes.index("phones")
    assert {labels.get(text, place) for text in data.proxy.texts} == {place}
    assert place not in data.public.labels
    assert all(place not in merchant.train.labels for merchant in data.merchants.values())
    assert place not in data.test.labels


def _labelled(part: Any) -> Any:
    return zip(part.texts, part.labels.tolist(), strict=True)


def test_a_proxy_set_is_generated_for_other_data(pricerunner_file: Any) -> None:
    base = {"dataset": "pricerunner", "min_rows": 10, "proxy_size": 60, "options": {"path": str(pricerunner_file)}}
    plain = load(DataConfig.model_validate(base))
    made = load(DataConfig.model_validate({**base, "proxy_dataset": "marketplace", "proxy_options": OPTIONS}))
    assert plain.test.texts == made.test.texts
    assert plain.public.texts == made.public.texts
    assert len(made.proxy) == 60
    assert not set(made.proxy.pairs or ()) & set(plain.proxy.pairs or ())
    assert all(name.startswith("marketplace: ") for name in made.proxy.merchants)
    assert not set(made.proxy.groups.tolist()) & {*plain.public.groups.tolist(), *plain.test.groups.tolist()}
    assert set(made.proxy.labels.tolist()) == {-1}


def test_another_dataset_that_is_small_gives_what_it_has() -> None:
    data = load(config(proxy_dataset="marketplace", proxy_options={"merchants": 4, "rows": 10}, proxy_size=10**5))
    assert len(data.proxy) == len(set(zip(data.proxy.texts, data.proxy.pairs or (), strict=True))) > 0
    told = data.account["proxy_set"]
    assert "data.proxy_size = 100,000" in told and "'marketplace'" in told and "data.proxy_options" in told


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"proxy_options": {"rows": 5}}, ConfigError, "proxy_options requires data.proxy_dataset"),
        (
            {"proxy_dataset": "marketplace", "proxy_domains": ["phones"]},
            ConfigError,
            "data.proxy_dataset and data.proxy_domains",
        ),
        (
            {"task": "category", "proxy_domains": ["gardening"]},
            ConfigError,
            r"data.proxy_domains = 'gardening' is not a domain of dataset 'marketplace'; it has: ",
        ),
    ],
)
def test_a_proxy_set_that_there_is_not_is_refused(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        load(config(**changes))
