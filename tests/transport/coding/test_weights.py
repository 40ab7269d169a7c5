"""Updates travel in whole or in part, and what coding loses of them is made up for later."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fed_distill.models.weights import PartialWeights
from fed_distill.transport.coding.base import Chain
from fed_distill.transport.coding.kept import Kept
from fed_distill.transport.coding.stream import Reader, Writer
from fed_distill.transport.coding.updates import SVD, Float16, Int4, Int8, Sign, TopK
from fed_distill.transport.coding.weights import read_weights, residual_of, with_residual, write_weights

CHAINS = {
    "float16": Chain((Float16(),)),
    "int8": Chain((Int8(),)),
    "top-k, int4": Chain((TopK(0.1), Int4())),
    "sign": Chain((Sign(),)),
    "svd, int8": Chain((SVD(rank=1), Int8())),
}
ROWS, WIDTH = 12, 6


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


BASE = {
    "table": drawn(ROWS, WIDTH, seed=1),
    "matrix": drawn(4, WIDTH, seed=2),
    "bias": drawn(WIDTH, seed=3),
    "frozen": drawn(2, 2, seed=4),
    "steps": torch.tensor(3),
}


def sent_by_a_merchant(rows, seed=0):
    """An update: some rows of the table, the others whole, one not at all."""
    rows = torch.tensor(sorted(rows), dtype=torch.int64)
    moved = {
        "table": 0.1 * drawn(len(rows), WIDTH, seed=seed + 10),
        "matrix": 0.1 * drawn(4, WIDTH, seed=seed + 11),
        "bias": 0.1 * drawn(WIDTH, seed=seed + 12),
    }
    return PartialWeights(moved, {"table": rows}, {"table": rows * 2})


def travel(update, chain, base=BASE, randomness=(0, "test")):
    out = Writer()
    write_weights(out, update, base, chain, randomness)
    source = Reader(out.content())
    got = read_weights(source, base, chain)
    source.finish()
    return got, len(out.content())


@given(st.sets(st.integers(0, ROWS - 1)))
def test_without_loss_updates_rows_and_counts_come_back(rows):
    sent = sent_by_a_merchant(rows)
    got, _ = travel(sent, Chain())
    assert set(got.arrays) == set(sent.arrays)
    assert torch.equal(got.rows["table"], sent.rows["table"])
    assert torch.equal(got.counts["table"], sent.counts["table"])
    assert all(torch.equal(got.arrays[name], value) for name, value in sent.arrays.items())


def test_a_base_of_another_order_reads_the_same():
    update = sent_by_a_merchant([1, 5])
    out = Writer()
    write_weights(out, update, BASE, CHAINS["int8"], (0, "test"))
    got = read_weights(Reader(out.content()), dict(reversed(BASE.items())), CHAINS["int8"])
    assert all(torch.equal(got.arrays[name], travel(update, CHAINS["int8"])[0].arrays[name]) for name in got.arrays)


@pytest.mark.parametrize("chain", CHAINS)
def test_biases_are_float16_and_whole_numbers_exact_in_every_chain(chain):
    got, _ = travel(PartialWeights(BASE), CHAINS[chain])
    assert torch.equal(got.arrays["bias"], BASE["bias"].half().float())
    assert torch.equal(got.arrays["steps"], BASE["steps"])


def test_rounding_is_drawn_from_the_seed_alone():
    update = sent_by_a_merchant([0, 3])
    one, again = (travel(update, CHAINS["int8"], randomness=(0, "a"))[0] for _ in range(2))
    other, _ = travel(update, CHAINS["int8"], randomness=(0, "b"))
    assert torch.equal(one.arrays["table"], again.arrays["table"])
    assert not torch.equal(one.arrays["table"], other.arrays["table"])


def test_a_table_in_part_without_counts_is_refused():
    rows = torch.tensor([1])
    with pytest.raises(ValueError, match="the partial table table has no use counts"):
        travel(PartialWeights({"table": torch.zeros(1, WIDTH)}, {"table": rows}), Chain())


@pytest.mark.parametrize("chain", CHAINS)
@settings(max_examples=20)
@given(rounds=st.lists(st.sets(st.integers(0, ROWS - 1)), min_size=1, max_size=6))
def test_what_arrives_sums_to_the_updates_but_for_the_last_residual(chain, rounds):
    """Telescoping: residual_t = update_t + residual_(t-1) - received_t, row by row, and untouched rows keep theirs."""
    updates = {name: torch.zeros_like(BASE[name]) for name in ("table", "matrix", "bias")}
    received = {name: torch.zeros_like(value) for name, value in updates.items()}
    residual = Kept.of(None).residual
    for number, rows in enumerate(rounds):
        update = sent_by_a_merchant(rows, seed=number)
        whole = with_residual(update, residual)
        got, _ = travel(whole, CHAINS[chain], randomness=(0, number))
        residual = Kept.of(Kept(residual_of(whole, got, residual)).tensors()).residual
        for sums, one in ((updates, update), (received, got)):
            for name, total in sums.items():
                total[one.rows.get(name, slice(None))] += one.arrays[name]
    left = {name: torch.zeros_like(value) for name, value in updates.items()}
    for name, value in residual.arrays.items():
        left[name][residual.rows.get(name, slice(None))] = value
    assert set(residual.arrays) == set(updates)
    for name, total in updates.items():
        torch.testing.assert_close(received[name] + left[name], total, atol=1e-5, rtol=1e-4)


def test_feedback_makes_up_for_what_one_bit_cannot_say():
    """The mean of ten equal updates through the sign stage, with feedback nearer to the update than without."""
    chain, update = CHAINS["sign"], PartialWeights({"matrix": drawn(4, WIDTH, seed=5)})
    residual, received = Kept.of(None).residual, torch.zeros(4, WIDTH)
    for _ in range(50):
        whole = with_residual(update, residual)
        got, _ = travel(whole, chain)
        residual = residual_of(whole, got, residual)
        received += got.arrays["matrix"] / 50
    once, _ = travel(update, chain)
    apart = [float((value - update.arrays["matrix"]).norm()) for value in (received, once.arrays["matrix"])]
    assert apart[0] < 0.2 * apart[1]


FORGED = {
    "an unknown state": (b"\xff\xff", "flag for the presence of bias is invalid"),
    "a bias in part": (b"\x02\x00", r"rows of bias, whose shape is \[6\]"),
    "too many rows": (np.packbits([0] * 8 + [0, 1], bitorder="little").tobytes() + b"\x0d\0\0\0", "13 rows of table"),
    "nothing": (b"", "ends too early"),
}


@pytest.mark.parametrize("case", FORGED)
def test_forged_bytes_are_refused(case):
    data, message = FORGED[case]
    data = data + b"\xff\xff\xff\xff" if case == "a bias in part" else data
    with pytest.raises(ValueError, match=message):
        read_weights(Reader(data), BASE, CHAINS["int8"])


@given(st.binary(max_size=200))
def test_whatever_bytes_say_fits_the_base_or_is_refused(data):
    try:
        got = read_weights(Reader(data), BASE, CHAINS["top-k, int4"])
    except ValueError:
        return
    for name, value in got.arrays.items():
        rows = got.rows.get(name)
        assert list(value.shape) == list(BASE[name].shape if rows is None else BASE[name][rows].shape)
