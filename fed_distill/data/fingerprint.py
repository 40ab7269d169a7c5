"""Fingerprints of examples and federations: equal exactly where the data are."""

from fed_distill.data.examples import Examples, FederatedData
from fed_distill.storage.fingerprint import fingerprint


def examples_fingerprint(examples: Examples) -> str:
    """Fingerprint of texts, pairs and labels, in order; merchants and groups do not count."""
    return fingerprint(texts=examples.texts, pairs=examples.pairs, labels=examples.labels.tolist())


def federated_fingerprint(data: FederatedData) -> str:
    """Fingerprint of all that a federation's merchants train on, their groups too, and of the proxy set."""
    merchants = {
        name: (examples_fingerprint(one.train), one.train.groups.tolist()) for name, one in data.merchants.items()
    }
    return fingerprint(proxy=examples_fingerprint(data.proxy), merchants=merchants)
