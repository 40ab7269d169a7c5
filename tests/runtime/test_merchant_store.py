"""A merchant's store holds the newest two rounds, each merchant's apart from all others."""

import pytest
import torch

from fed_distill.runtime.merchant_store import MerchantStore


def weights(value):
    return {"w": torch.full((2,), float(value))}


@pytest.fixture
def store(tmp_path):
    return MerchantStore(tmp_path / "sites")


def test_the_last_round_before_the_given_one_is_loaded(store):
    for number in (1, 2):
        store.save("fedmd", 0, "a", number, weights(number))
    assert store.load("fedmd", 0, "a", before=3)["w"].tolist() == [2.0, 2.0]
    assert store.load("fedmd", 0, "a", before=2)["w"].tolist() == [1.0, 1.0]
    assert store.load("fedmd", 0, "a", before=1) is None


def test_only_the_newest_two_rounds_are_kept(store, tmp_path):
    for number in (1, 2, 9, 10, 11):
        store.save("fedmd", 0, "a", number, weights(number))
    assert sorted(path.stem for path in tmp_path.rglob("*.safetensors")) == ["000010", "000011"]
    assert store.load("fedmd", 0, "a", before=10) is None


def test_later_rounds_of_an_earlier_run_of_this_name_are_dropped(store):
    for number in (9, 10):
        store.save("fedmd", 0, "a", number, weights(number))
    for number in (1, 2, 3):
        store.save("fedmd", 0, "a", number, weights(-number))
        assert store.newest("fedmd", 0, "a", before=100) == number
    assert store.load("fedmd", 0, "a", before=3)["w"].tolist() == [-2.0, -2.0]


def test_a_round_trained_again_replaces_itself(store):
    store.save("fedmd", 0, "a", 1, weights(1))
    store.save("fedmd", 0, "a", 1, weights(5))
    assert store.load("fedmd", 0, "a", before=2)["w"].tolist() == [5.0, 5.0]


def test_what_is_kept_outlives_the_site(store, tmp_path):
    store.save("fedmd", 0, "a", 1, weights(1))
    assert MerchantStore(tmp_path / "sites").load("fedmd", 0, "a", before=2)["w"].tolist() == [1.0, 1.0]


def test_arms_seeds_and_merchants_of_any_name_are_kept_apart(store, tmp_path):
    keys = [
        ("fedmd", 0, "a"),
        ("fedmd", 1, "a"),
        ("fedmd+x", 0, "a"),
        ("fedmd", 0, "../a"),
        ("fedmd", 0, "a/b"),
        ("a/fedmd", 0, "日本"),
        ("fedmd", 0, "."),
        ("fedmd", 0, ".."),
        ("fedmd", 0, "商户" * 60 + "a"),
        ("fedmd", 0, "商户" * 60 + "b"),
        ("..", 0, "a"),
    ]
    for number, key in enumerate(keys):
        store.save(*key, 1, weights(number))
    assert [store.load(*key, before=2)["w"][0].item() for key in keys] == list(range(len(keys)))
    assert len({len(path.parts) for path in tmp_path.rglob("*.safetensors")}) == 1
    assert all((tmp_path / "sites") in path.parents for path in tmp_path.rglob("*.safetensors"))
    assert store.load("fedmd", 0, "unknown", before=9) is None


def test_the_newest_round_is_told_without_loading_it(store):
    assert store.newest("fedmd", 0, "a", before=9) == 0
    for number in (3, 7):
        store.save("fedmd", 0, "a", number, weights(number))
    assert [store.newest("fedmd", 0, "a", before) for before in (3, 4, 7, 8, 99)] == [0, 3, 3, 7, 7]
