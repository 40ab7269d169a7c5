"""Streams of random numbers: named by seed and parts, apart from each other and from global state, and not cut short.

Expected numbers come from hashlib, from NumPy's own Mersenne Twister, and from RFC 8439.
"""

import hashlib
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fed_distill import seeds

PARTS = st.lists(
    st.one_of(st.integers(0, 99), st.sampled_from(["batches", "merchant-1", "merchant-11", b"merchant-1"])), max_size=4
)


def draws(seed, *parts):
    return (
        seeds.numpy_stream(seed, *parts).random(4).tolist(),
        torch.rand(4, generator=seeds.torch_stream(seed, *parts)).tolist(),
        seeds.Keystream(seed, *parts).uniform(4).tolist(),
    )


@given(st.integers(0, 2**40), PARTS)
def test_the_same_parts_give_the_same_stream(seed, parts):
    assert draws(seed, *parts) == draws(seed, *parts)


@given(st.integers(0, 99), PARTS, st.integers(0, 99), PARTS)
def test_different_parts_give_different_streams(seed, parts, other_seed, other_parts):
    if (seed, parts) != (other_seed, other_parts):
        for one, other in zip(draws(seed, *parts), draws(other_seed, *other_parts), strict=True):
            assert one != other


def test_parts_do_not_run_into_each_other():
    names = [
        *((1, "ab", "c"), (1, "a", "bc"), (1, "abc")),
        *((1, 2, 3), (1, 23), (12, 3), (1, "2", 3), (1, b"2", 3)),
        *((1, "shop\x1f3"), (1, "shop", 3), (1, "shop", "3")),  # a merchant's name may have any character
    ]
    assert len({seeds.key(*name) for name in names}) == len(names)


def test_a_key_is_the_sha256_of_its_parts_each_with_its_kind_and_length():
    parts = b"i" + (1).to_bytes(8, "big") + b"7" + b"s" + (2).to_bytes(8, "big") + "ü".encode()
    assert seeds.key(7, "ü") == hashlib.sha256(parts).digest()
    assert seeds.derive(7, "ü") == int.from_bytes(hashlib.sha256(parts).digest()[:8], "big") >> 1


def test_no_two_streams_of_a_run_are_equal():
    """Of 100,000 (merchant, round, purpose) the keys, among which 32 bits would collide about once; of a tenth of them
    the first 16 bytes that each kind of stream draws."""
    names = [
        (0, "fedavg-kd", f"merchant-{merchant}", round, purpose)
        for merchant in range(250)
        for round in range(1, 101)
        for purpose in ("noise", "batches", "dropout", "size noise")
    ]
    assert len({seeds.key(*name) for name in names}) == 100_000
    some = names[:10_000]
    assert len({seeds.Keystream(*name).uniform(2).numpy().tobytes() for name in some}) == len(some)
    assert len({seeds.numpy_stream(*name).bytes(16) for name in some}) == len(some)


def test_no_two_torch_streams_of_a_run_are_equal():
    """Fewer, as torch fills 5 KB of state for each."""
    found = set()
    for merchant in range(2000):
        generator = seeds.torch_stream(0, f"merchant-{merchant}", "batches")
        found.add(torch.randint(2**62, (2,), generator=generator).numpy().tobytes())
    assert len(found) == 2000


def test_every_bit_of_a_secret_changes_every_number():
    secret = hashlib.sha256(b"secret").digest()
    before = seeds.Keystream(secret, "noise")
    uniform, normal = before.uniform(64), before.normal(64)
    for bit in range(256):
        flipped = bytearray(secret)
        flipped[bit // 8] ^= 1 << bit % 8
        other = seeds.Keystream(bytes(flipped), "noise")
        assert not (other.uniform(64) == uniform).any()
        assert not (other.normal(64) == normal).any()


def test_seeds_that_agree_in_their_low_32_bits_are_different_seeds():
    """torch's own ``manual_seed`` keeps those 32 bits alone."""
    cut = [torch.rand(4, generator=torch.Generator().manual_seed(seed)) for seed in (5, 5 + 77 * 2**32)]
    assert torch.equal(*cut)
    for one, other in zip(draws(5), draws(5 + 77 * 2**32), strict=True):
        assert one != other


def test_noise_is_not_among_all_that_32_bit_seeds_give():
    """The attack on what was here before, at its size for a test: try seeds, compare with numbers that are known. It
    finds the noise of a stream that ``manual_seed`` made and none of a keystream; its other 2^32 seeds differ by the
    test above."""
    tries = range(2000)
    victim = torch.Generator().manual_seed(1234 + 77 * 2**32)
    tables = {torch.randn(16, generator=torch.Generator().manual_seed(seed)).numpy().tobytes() for seed in tries}
    assert torch.randn(16, generator=victim).numpy().tobytes() in tables
    assert seeds.Keystream(1234 + 77 * 2**32).normal(16).float().numpy().tobytes() not in tables


def linear_complexity(bits):
    """Length of the shortest linear feedback shift register that gives ``bits`` (Berlekamp and Massey 1969), the
    polynomials as integers."""
    connection, former, length, gap = 1, 1, 0, 1
    window = 0
    for place, bit in enumerate(bits):
        window = window << 1 | bit
        taps = connection & ((1 << (length + 1)) - 1)
        discrepancy = bin(taps & window).count("1") & 1
        if not discrepancy:
            gap += 1
        elif 2 * length <= place:
            connection, former = connection ^ (former << gap), connection
            length, gap = place + 1 - length, 1
        else:
            connection ^= former << gap
            gap += 1
    return length


def top_bits(uniforms):
    return [int(value >= 0.5) for value in uniforms]


def test_known_noise_says_nothing_of_the_rest_as_it_does_with_the_mersenne_twister():
    """Its bits, however its state was filled, obey a linear recurrence of 19,937 terms: who sees the noise where an
    update is known to be 0 computes it everywhere. A random sequence has half its length."""
    size = 42_000
    twister = torch.rand(size, generator=seeds.torch_stream(3, "batches"))
    assert linear_complexity(top_bits(twister)) <= 19_937
    keystream = seeds.Keystream(3, "noise").uniform(size)
    assert abs(linear_complexity(top_bits(keystream)) - size / 2) < 40


def test_a_keystream_is_chacha20_of_its_key():
    """RFC 8439's cipher, by the block function below: 16 words of 32 bits."""
    words = chacha20_block(seeds.key(9, "noise"), 0) + chacha20_block(seeds.key(9, "noise"), 1)
    numbers = [(high << 32 | low) >> 11 for low, high in zip(words[::2], words[1::2], strict=True)]
    assert seeds.Keystream(9, "noise").uniform(16).tolist() == [number * 2.0**-53 for number in numbers]


def test_the_block_that_is_compared_with_is_the_rfcs():
    """RFC 8439, appendix A.1, test vector 1: key, nonce and counter of zeros."""
    expected = bytes.fromhex(
        "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
        "da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586"
    )
    assert b"".join(word.to_bytes(4, "little") for word in chacha20_block(bytes(32), 0)) == expected


def chacha20_block(key, counter):
    """RFC 8439, section 2.3, with a nonce of zeros."""
    constants = [int.from_bytes(b"expand 32-byte k"[at : at + 4], "little") for at in range(0, 16, 4)]
    start = [*constants, *(int.from_bytes(key[at : at + 4], "little") for at in range(0, 32, 4)), counter, 0, 0, 0]
    state = list(start)

    def turn(value, by):
        return (value << by | value >> 32 - by) & 0xFFFFFFFF

    def quarter(a, b, c, d):
        for x, y, z, by in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            state[x] = (state[x] + state[y]) & 0xFFFFFFFF
            state[z] = turn(state[z] ^ state[x], by)

    for _ in range(10):
        for column in range(4):
            quarter(column, 4 + column, 8 + column, 12 + column)
        for a, b, c, d in ((0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14)):
            quarter(a, b, c, d)
    return [(one + other) & 0xFFFFFFFF for one, other in zip(state, start, strict=True)]


def test_a_keystream_goes_on_where_it_was():
    whole = seeds.Keystream(1, "noise").uniform(10)
    part = seeds.Keystream(1, "noise")
    assert torch.equal(torch.cat([part.uniform(3), part.uniform(0), part.uniform(7)]), whole)
    whole = seeds.Keystream(1, "noise").normal(10)
    part = seeds.Keystream(1, "noise")
    assert torch.equal(torch.cat([part.normal(2, 2).flatten(), part.normal(6)]), whole)


def test_a_keystream_is_uniform_and_normal():
    """Kolmogorov-Smirnov, and for normals the moments and the correlation of the two that one radius gives."""
    stream = seeds.Keystream(0, "distribution")
    assert stats.kstest(stream.uniform(100_000).numpy(), "uniform").pvalue > 1e-3
    normal = stream.normal(1000, 200)
    assert normal.dtype == torch.float64
    assert stats.kstest(normal.flatten().numpy(), "norm").pvalue > 1e-3
    assert abs(float(stats.kurtosis(normal.flatten().numpy()))) < 0.05
    pairs = normal.reshape(-1, 2)
    assert abs(float(torch.corrcoef(pairs.T)[0, 1])) < 0.02
    assert abs(float(torch.corrcoef(pairs.square().T)[0, 1])) < 0.02


def test_a_keystream_reaches_the_tails():
    """Of 2 * 10^6 normals about 1.15 exceed 5 and 126.7 exceed 4 in size, as a normal distribution has it."""
    normal = seeds.Keystream(0, "tails").normal(2_000_000).abs()
    expected = 2_000_000 * math.erfc(4.0 / math.sqrt(2.0))
    assert abs(int((normal > 4.0).sum()) - expected) < 5.0 * math.sqrt(expected)


def test_a_torch_stream_is_the_mersenne_twister_whose_words_are_shake_256_of_the_key():
    """NumPy's own Mersenne Twister from the same 624 words."""
    words = np.frombuffer(hashlib.shake_256(seeds.key(7, "a")).digest(4 * 624), dtype="<u4")
    twin = np.random.RandomState()
    twin.set_state(("MT19937", words, 624))
    expected = twin.randint(0, 2**32, 8, dtype=np.uint32)
    found = torch.randint(0, 2**20, (8,), generator=seeds.torch_stream(7, "a"))
    assert found.tolist() == (expected % 2**20).tolist()


def test_a_numpy_stream_is_philox_under_128_bits_of_the_name():
    sequence = np.random.SeedSequence(int.from_bytes(seeds.key(7, "a"), "big"))
    words = sequence.generate_state(2, np.uint64)
    twin = np.random.Generator(np.random.Philox(key=int(words[0]) | int(words[1]) << 64))
    assert seeds.numpy_stream(7, "a").random(5).tolist() == twin.random(5).tolist()
    assert len(seeds.numpy_stream(7, "a").spawn(2)) == 2


def test_streams_are_frozen():
    """A change here changes every result."""
    assert seeds.key(7, "fedavg", "merchant-1", 3).hex()[:16] == "7a8b6936841e8b3a"
    assert seeds.numpy_stream(7, "fedavg", "merchant-1", 3).integers(0, 1000, 5).tolist() == [318, 582, 989, 40, 907]
    generator = seeds.torch_stream(7, "fedavg", "merchant-1", 3)
    assert torch.randint(1000, (5,), generator=generator).tolist() == [981, 672, 446, 95, 282]
    keystream = seeds.Keystream(7, "fedavg", "merchant-1", 3)
    assert (keystream.uniform(5) * 1000).long().tolist() == [825, 72, 76, 327, 101]


def test_a_stream_does_not_depend_on_what_was_drawn_before():
    alone = draws(3, "a")
    draws(3, "b")
    torch.rand(5)
    np.random.default_rng().random(3)
    assert draws(3, "a") == alone


def test_a_scope_gives_code_that_draws_globally_its_own_stream():
    with seeds.scope(5, "init"):
        first = torch.rand(3)
    torch.rand(2)
    with seeds.scope(5, "init"):
        again = torch.rand(3)
    with seeds.scope(5, "dropout"):
        other = torch.rand(3)
    assert torch.equal(first, again)
    assert torch.equal(first, torch.rand(3, generator=seeds.torch_stream(5, "init")))
    assert not torch.equal(first, other)


def test_a_scope_leaves_the_global_state_as_it_was_even_after_an_error():
    before = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), seeds.scope(5, "init"):
        torch.rand(10)
        raise ZeroDivisionError
    assert torch.equal(torch.get_rng_state(), before)
