"""The account of a run's data in words, for the report; ``fed-distill data describe`` uses the same ones."""

from collections.abc import Mapping
from typing import Any

from fed_distill.reporting.wording import percent

WORDS = {
    "client_rows": "training rows of clients",
    "cleaning.unlabeled_merchants": "merchants without a known label",
    "merchants.public": "public (the server's)",
    "merchants.too_small": "too small to be clients",
    "merchants.cold": "cold (held out whole)",
    "merchants.single_class": "clients with one class only",
    "limited_to.merchants": "clients kept (data.max_merchants)",
    "proxy": "proxy set",
    "proxy.texts": "distinct texts",
    "proxy.in_server_rows": "of these, in the server's labelled examples",
    "proxy.merchant_words": "word types of the clients",
    "proxy.unknown_to_server": "of these, not in the server's labelled examples",
    "proxy.covered": "of those that are not, in the proxy set",
}
"""Words by key of ``FederatedData.account``; a key that is not here is its own word."""
_SHARES = ("proxy.in_server_rows", "proxy.unknown_to_server", "proxy.covered")


def in_words(account: Mapping[str, Any]) -> dict[str, Any]:
    """Return the account with words as keys on its first two levels, and shares as per cent.

    Deeper levels have names from the data, which stay as they are.
    """
    found: dict[str, Any] = {}
    for key, item in account.items():
        inner = item
        if isinstance(item, Mapping):
            inner = {
                WORDS.get(f"{key}.{name}", name): percent(value, 1) if f"{key}.{name}" in _SHARES else value
                for name, value in item.items()
            }
        found[WORDS.get(key, key)] = inner
    return found
