"""What a proxy set can teach: how much of it the server has with labels already, and which new words it brings.

Soft labels on texts that the server has labelled rows of add little to these rows. Words that only merchants use are
what a student misses that was trained on the server's rows.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from fed_distill.data.dataset import IntArray
from fed_distill.data.examples import Examples, FederatedData
from fed_distill.data.tasks import HISTORY_SEPARATOR
from fed_distill.text.hashing import bag_rows

_WORD_CODES = 2**31 - 1
"""Words are counted by their hashes, of which hardly any two are equal in this range."""
_DIGITS = 4
_NEARLY_ALL = 0.9
"""Share of the proxy texts in the server's labelled examples from which on the teacher's labels of them add little."""


def proxy_account(data: FederatedData) -> dict[str, Any]:
    """Count the distinct texts of the proxy set and the word types of the merchants' training texts.

    :returns: ``texts``: distinct texts, both roles together and histories as their titles; ``in_server_rows``: the
        share of them that are in the server's labelled examples. With local merchants also ``merchant_words``: word
        types in their training examples; ``unknown_to_server``: the share of these that are in none of the server's
        labelled examples; ``covered``: the share of those unknown ones that are in the proxy set.
    """
    histories = data.task.of_histories
    proxy, server = _texts([data.proxy], histories), _texts([data.public], histories)
    account: dict[str, Any] = {
        "texts": len(proxy),
        "in_server_rows": _share(len(proxy & server), len(proxy)),
    }
    if data.merchants:
        tables = [table for merchant in data.merchants.values() for table in (merchant.train, merchant.unlabeled)]
        words = _words(_texts(tables, histories))
        unknown = np.setdiff1d(words, _words(server), assume_unique=True)
        covered = np.intersect1d(unknown, _words(proxy), assume_unique=True)
        account |= {
            "merchant_words": len(words),
            "unknown_to_server": _share(len(unknown), len(words)),
            "covered": _share(len(covered), len(unknown)),
        }
    return account


def repeats_server(account: Mapping[str, Any]) -> bool:
    """Return whether (nearly) all proxy texts are in the server's labelled examples, by ``proxy_account``."""
    return bool(account["in_server_rows"] >= _NEARLY_ALL)


def _share(part: int, whole: int) -> float:
    return round(part / max(whole, 1), _DIGITS)


def _texts(tables: Iterable[Examples], histories: bool) -> set[str]:
    found: set[str] = set()
    for table in tables:
        found.update(
            title for text in table.texts for title in (text.split(HISTORY_SEPARATOR) if histories else [text])
        )
        found.update(table.pairs or ())
    return found


def _words(texts: set[str]) -> IntArray:
    """Return the hashes of the distinct words of ``texts``, sorted."""
    codes = np.unique(bag_rows(tuple(texts), _WORD_CODES, ngrams=()))
    return codes[codes > 0].astype(np.int64)
