"""A merchant's store holds the newest two rounds, each merchant's apart from all others."""

import shutil

import pytest
import torch

from fed_distill.errors import CheckpointError
from fed_distill.storage.merchant_store import CODING, STUDENTS, MerchantStore, Stores, kept_as


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


KEYS = [("fedmd", 0, "a"), ("fedmd", 0, "b"), ("fedmd", 1, "a"), ("fedkd", 0, "a")]


@pytest.mark.parametrize("other", KEYS[1:])
@pytest.mark.parametrize("round", [2, 1])
def test_what_is_another_merchants_seeds_arms_or_rounds_is_not_loaded(store, tmp_path, other, round):
    for key in KEYS:
        store.save(*key, 1, weights(1))
        store.save(*key, 2, weights(2))
    arm, seed, merchant = other
    theirs = tmp_path / "sites" / f"seed-{seed}" / arm / merchant / f"{round:06d}.safetensors"
    shutil.copy(theirs, tmp_path / "sites" / "seed-0" / "fedmd" / "a" / "000002.safetensors")
    with pytest.raises(CheckpointError, match=r"a/000002\.safetensors .*put back a copy of it"):
        store.load("fedmd", 0, "a", before=3)
    assert store.load(*other, before=3)["w"].tolist() == [2.0, 2.0]


@pytest.fixture
def stores(store, tmp_path):
    """Stores of a federation whose merchants have taken part in rounds 1 and 2, and one of them in 3."""
    for merchant, newest in (("a", 3), ("b/c", 2)):
        for number in range(1, newest + 1):
            store.save("fedmd", 0, merchant, number, weights(number))
    MerchantStore(tmp_path / CODING).save("coded", 0, "a", 2, weights(2))
    return Stores(tmp_path, 0, {STUDENTS: "fedmd", CODING: "coded", "soft-labels": "fedmd"})


def test_what_is_kept_before_a_round_is_told_by_store_and_merchant(stores):
    assert stores.rounds(before=4) == {STUDENTS: {"a": 3, "b%2Fc": 2}, CODING: {"a": 2}, "soft-labels": {}}
    assert stores.rounds(before=3) == {STUDENTS: {"a": 2, "b%2Fc": 2}, CODING: {"a": 2}, "soft-labels": {}}
    assert stores.rounds(before=1) == {STUDENTS: {}, CODING: {}, "soft-labels": {}}


def test_all_that_was_kept_is_there_and_later_rounds_do_no_harm(stores):
    for before, least in ((4, 4), (4, 3), (3, 3), (1, 1)):
        stores.check(before, stores.rounds(least))


@pytest.mark.parametrize(
    "lost", ["sites/seed-0/fedmd/a/000003.safetensors", "coding/seed-0/coded/a/000002.safetensors"]
)
def test_what_was_kept_and_is_missing_or_damaged_is_named(stores, tmp_path, lost):
    kept, data = stores.rounds(before=4), (tmp_path / lost).read_bytes()
    (tmp_path / lost).write_bytes(data[:-1] + b"\1")
    with pytest.raises(
        CheckpointError, match=rf"{lost} cannot be read \(its checksum does not match.*; put back a copy"
    ):
        stores.check(4, kept)
    (tmp_path / lost).unlink()
    with pytest.raises(CheckpointError, match=f"{lost} is missing; put back a copy of it"):
        stores.check(4, kept)
    shutil.rmtree(tmp_path / lost.split("/")[0])
    with pytest.raises(CheckpointError, match="is missing; put back a copy of it"):
        stores.check(4, kept)


def test_a_store_of_too_new_rounds_does_not_fit_an_older_checkpoint(store, stores):
    """The newest two rounds are kept, and not the one before, which an older checkpoint would go on from."""
    with pytest.raises(CheckpointError, match=r"fedmd/a/000001\.safetensors is missing"):
        stores.check(2, {STUDENTS: {"a": 1, "b%2Fc": 1}})


def test_state_under_privacy_is_kept_by_the_settings_that_protect_it():
    assert kept_as("fedmd", "none", None) == "fedmd"
    names = {kept_as("moon", unit, {"epochs": epochs}) for unit in ("example", "group") for epochs in (1, 2)}
    assert len(names) == 4
    assert all(name.count("/") == 2 for name in names)  # as no title of a federation, which would share the store


def test_what_another_store_keeps_of_the_same_merchant_is_not_loaded(store, tmp_path):
    other = MerchantStore(tmp_path / "soft-labels")
    for one in (store, other):
        one.save("fedmd", 0, "a", 1, weights(1))
    place = "seed-0/fedmd/a/000001.safetensors"
    shutil.copy(tmp_path / "soft-labels" / place, tmp_path / "sites" / place)
    with pytest.raises(CheckpointError, match=f"sites/{place} contains soft-labels/seed-0/fedmd/a"):
        store.load("fedmd", 0, "a", before=2)
