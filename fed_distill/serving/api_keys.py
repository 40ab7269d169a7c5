"""Keys of the service: made once, stored as hashes, checked in constant time, with a rate each.

A key has 256 random bits, so that a plain SHA-256 of it cannot be searched; slow password hashes are for secrets that
people choose. Rates are token buckets: a request takes a token, and ``rate`` tokens a second return, up to ``burst``.
Where several processes serve, ``shared_rates`` keeps the tokens for all of them.
"""

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol, Self

from fed_distill.serving.service_config import KeyTable, Scope

_PREFIX = "fdk_"
"""By which scanners of source code find a key that was committed."""
_LONGEST = 128
"""Characters of what is presented as a key; longer ones are not hashed."""


def new_key() -> str:
    """Return a new random key."""
    return _PREFIX + secrets.token_urlsafe(32)


def key_hash(key: str) -> str:
    """Return the SHA-256 of a key, hexadecimal, as ``serve.toml`` stores it."""
    return hashlib.sha256(key.encode()).hexdigest()


class TokenBucket(Protocol):
    """The token bucket of one key."""

    def wait(self, table: KeyTable, now: float) -> float:
        """Take a token and return 0; without one left, return the seconds until there is one.

        :param table: rate and burst in force
        :param now: seconds of the monotonic clock
        """
        ...


@dataclass
class OwnBucket:
    """A bucket of this process: the tokens that are left at the time ``at`` of the monotonic clock."""

    tokens: float
    at: float

    @classmethod
    def full(cls, table: KeyTable, now: float) -> Self:
        """Return the bucket of a key that has not been used."""
        return cls(float(table.burst), now)

    def at_time(self, table: KeyTable, now: float) -> float:
        """Return the tokens at a time not before ``at``."""
        return min(table.burst, self.tokens + (now - self.at) * table.rate)

    def wait(self, table: KeyTable, now: float) -> float:
        """Take a token, as ``TokenBucket`` describes."""
        self.tokens, self.at = self.at_time(table, now), now
        if self.tokens >= 1.0:
            self.tokens -= 1.0
            return 0.0
        return (1.0 - self.tokens) / table.rate


@dataclass
class ApiKey:
    """A key and its bucket."""

    table: KeyTable
    bucket: TokenBucket

    @property
    def name(self) -> str:
        """Name in logs."""
        return self.table.name

    def allows(self, scope: Scope) -> bool:
        """Whether the key may use routes of ``scope``."""
        return scope in self.table.scopes

    def wait(self, now: float) -> float:
        """Take a token and return 0; without one left, return the seconds until there is one."""
        return self.bucket.wait(self.table, now)


@dataclass
class KeyRing:
    """The keys in force. clock: seconds, monotonic. now: time of day, for expiry. bucket: makes the bucket of a key.

    required: whether a request must have a key; it does not change, so that a file without keys locks everybody out.
    """

    tables: Iterable[KeyTable]
    clock: Callable[[], float] = time.monotonic
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    bucket: Callable[[KeyTable, float], TokenBucket] = OwnBucket.full
    required: bool = field(init=False)
    _keys: tuple[ApiKey, ...] = field(init=False, default=())

    def __post_init__(self) -> None:
        self.replace(self.tables)
        self.required = bool(self._keys)

    def replace(self, tables: Iterable[KeyTable]) -> None:
        """Put ``tables`` in force; a key that stays keeps its tokens, within its burst."""
        tables, before, at = tuple(tables), {one.table.sha256: one for one in self._keys}, self.clock()
        keys = []
        for table in tables:
            old = before.get(table.sha256)
            keys.append(ApiKey(table, self.bucket(table, at) if old is None else old.bucket))
        self._keys = tuple(keys)

    def find(self, presented: bytes) -> ApiKey | None:
        """Return the key that is ``presented``, or None if there is none or it has expired.

        All hashes are compared, each in constant time, so that the duration tells nothing about them.
        """
        if len(presented) > _LONGEST:
            return None
        digest = hashlib.sha256(presented).hexdigest()
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.table.sha256, digest):
                found = key
        if found is not None and found.table.expires is not None and found.table.expires <= self.now():
            return None
        return found
