"""Merchants are spread so that no site has much more to train than another."""

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from fed_distill.merchant.assignment import assign_merchants

SIZES = st.dictionaries(st.text(max_size=5), st.integers(0, 1000), max_size=30)


def test_the_largest_go_first_to_the_site_with_least():
    sizes = {"a": 2, "b": 7, "c": 5, "d": 4, "e": 3}
    # b to the first, c and then d to the second (5 < 7), e to the first (7 < 9), a to the second (9 < 10)
    assert assign_merchants(sizes, 2) == [["b", "e"], ["a", "c", "d"]]


@given(SIZES, st.integers(1, 6))
def test_every_merchant_is_at_one_site_whatever_the_order_of_the_names(sizes, parts):
    lists = assign_merchants(sizes, parts)
    assert len(lists) == parts
    assert sorted(name for names in lists for name in names) == sorted(sizes)
    assert lists == assign_merchants(dict(reversed(sizes.items())), parts)


@given(st.lists(st.integers(1, 100), min_size=1, max_size=7), st.integers(1, 3))
def test_the_fullest_site_has_at_most_four_thirds_of_the_best_spread(values, parts):
    sizes = {f"m{number}": value for number, value in enumerate(values)}
    fullest = max(sum(sizes[name] for name in names) for names in assign_merchants(sizes, parts))
    best = min(
        max(sum(value for value, place in zip(values, places, strict=True) if place == part) for part in range(parts))
        for places in product(range(parts), repeat=len(values))
    )
    assert fullest <= (4 / 3 - 1 / (3 * parts)) * best + 1e-9  # Graham 1969, theorem 2
