"""Every random number of a run: from a key that names the draw, never from global state.

A draw is named by the run's seed or a secret and by parts such as merchant, round and purpose, so that the result does
not depend on the runtime, on the order of merchants or on what else the process drew before. There are two kinds:

- ``numpy_stream``, ``torch_stream`` and ``scope`` are fast generators whose whole state is filled from the name: 128
  bits of key for numpy, 19,968 bits of state for torch. They are for data, initial weights and batches. Whoever sees
  enough of their numbers can compute the rest (Mersenne Twister's outputs are linear in its state), so they protect
  nothing.
- ``Keystream`` is for whatever privacy rests on: noise, and the coins of sampling. It is ChaCha20 (RFC 8439) under a
  256-bit key; numbers that are known say nothing of the others.

All are drawn on the CPU, so that a GPU trains with the same numbers. Only code that draws from torch's global state on
a GPU within a ``scope`` gets CUDA's own generator, which has a 64-bit key.

torch is imported by what draws with it, so that reading data does not wait for it.
"""

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Part = str | int | bytes
"""What a name is made of. An int and its text are different parts."""
Randomness = tuple[Part, *tuple[Part, ...]]
"""The beginning of a name: the run's seed or a secret, then what tells a training from all others."""

_MT_WORDS = 624
_MASK_53 = (1 << 53) - 1


def key(seed: Part, *parts: Part) -> bytes:
    """The 32 bytes that the run's seed, or a secret, and ``parts`` name: SHA-256 of an encoding in which no two
    sequences of parts are alike."""
    hashed = hashlib.sha256()
    for part in (seed, *parts):
        kind = b"s" if isinstance(part, str) else b"b" if isinstance(part, bytes) else b"i"
        content = part if isinstance(part, bytes) else str(part).encode()
        hashed.update(kind + len(content).to_bytes(8, "big") + content)
    return hashed.digest()


def derive(seed: Part, *parts: Part) -> int:
    """A 63-bit number, for other people's generators and for hashes that are no stream."""
    return int.from_bytes(key(seed, *parts)[:8], "big") >> 1


def numpy_stream(seed: Part, *parts: Part) -> np.random.Generator:
    """A numpy generator for one purpose: Philox (Salmon et al. 2011) under 128 bits of key, which numpy's
    ``SeedSequence`` makes of the whole name, so that ``spawn`` gives further ones."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(int.from_bytes(key(seed, *parts), "big"))))


def torch_stream(seed: Part, *parts: Part) -> "torch.Generator":
    """A torch generator on the CPU for one purpose: the Mersenne Twister with its whole state filled."""
    import torch

    generator = torch.Generator()
    generator.set_state(_twister_state(key(seed, *parts)))
    return generator


@contextmanager
def scope(seed: Part, *parts: Part) -> Iterator[None]:
    """Give code that can only draw from torch's global state (initialisation, dropout) a stream of its own.

    The global state is put back afterwards, as if nothing had been drawn.
    """
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(derive(seed, *parts))  # of every device
        torch.set_rng_state(_twister_state(key(seed, *parts)))
        yield


class Keystream:
    """Random numbers that nobody predicts who has not the name: ChaCha20 under ``key(seed, *parts)``.

    They come one after another: drawing 3 and then 2 uniforms gives the same as drawing 5.
    """

    def __init__(self, seed: Part, *parts: Part) -> None:
        self._cipher = Cipher(ChaCha20(key(seed, *parts), bytes(16)), mode=None).encryptor()

    def uniform(self, *shape: int) -> "Tensor":
        """Multiples of 2^-53 in [0, 1), float64 of ``shape``."""
        return self._integers(math.prod(shape)).double().mul_(2.0**-53).view(shape)

    def normal(self, *shape: int) -> "Tensor":
        """Standard normal numbers, float64 of ``shape`` (Box and Muller 1958).

        Their smallest probability is that of a 53-bit uniform: nothing beyond 8.57 is drawn, which has probability
        1e-17. Even counts are needed in all but the last draw for the property that the class promises.
        """
        import torch

        size = math.prod(shape)
        half = (size + 1) // 2
        drawn = self._integers(2 * half).view(half, 2)
        radius = drawn[:, 0].double().add_(1.0).mul_(2.0**-53).log_().mul_(-2.0).sqrt_()
        angle = drawn[:, 1].double().mul_(2.0**-52 * math.pi)
        found = torch.empty(half, 2, dtype=torch.float64)
        torch.mul(radius, angle.cos(), out=found[:, 0])
        torch.mul(radius, angle.sin_(), out=found[:, 1])
        return found.view(-1)[:size].view(shape)

    def _integers(self, size: int) -> "Tensor":
        """53-bit integers, int64 ``[size]``."""
        import torch

        drawn = torch.frombuffer(bytearray(self._cipher.update(bytes(8 * size))), dtype=torch.int64) if size else None
        return (
            torch.empty(0, dtype=torch.int64)
            if drawn is None
            else drawn.bitwise_right_shift_(11).bitwise_and_(_MASK_53)
        )


def _twister_state(name: bytes) -> "Tensor":
    """A state of torch's CPU generator whose 624 words come from SHAKE-256 of ``name``.

    Its layout is torch's ``mt19937``: where ``manual_seed`` leaves the words, and nothing drawn of them yet.
    """
    import torch

    state = torch.Generator().manual_seed(0).get_state()
    words = np.frombuffer(hashlib.shake_256(name).digest(4 * _MT_WORDS), dtype="<u4").astype("<u8")
    filled = state.numpy().copy()
    filled[24 : 24 + 8 * _MT_WORDS] = words.view(np.uint8)
    return torch.from_numpy(filled)
