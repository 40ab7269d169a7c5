"""Fingerprints of examples, of federations and of all data of a run."""

from fed_distill.data.examples import Examples, FederatedData
from fed_distill.storage.fingerprint import fingerprint


def examples_fingerprint(examples: Examples) -> str:
    """Return a fingerprint of texts, pairs and labels, in order; merchants and groups are ignored."""
    return fingerprint(texts=examples.texts, pairs=examples.pairs, labels=examples.labels.tolist())


def federated_fingerprint(data: FederatedData) -> str:
    """Return a fingerprint of the merchants' training data, their groups included, and of the proxy set."""
    merchants = {
        name: (examples_fingerprint(one.train), one.train.groups.tolist()) for name, one in data.merchants.items()
    }
    unlabeled = {
        name: (examples_fingerprint(one.unlabeled), one.unlabeled.groups.tolist())
        for name, one in data.merchants.items()
        if len(one.unlabeled)
    }
    more = {"unlabeled": unlabeled} if unlabeled else {}
    return fingerprint(proxy=examples_fingerprint(data.proxy), merchants=merchants, **more)


def run_fingerprint(data: FederatedData) -> str:
    """Return a fingerprint of everything that a run trains or is scored on."""
    rankings = [one for one in (data.ranking_valid, data.ranking_test) if one is not None]
    return fingerprint(
        federated=federated_fingerprint(data),
        parts=[examples_fingerprint(one) for one in (data.public, data.public_valid, data.valid, data.test)],
        rankings=[(examples_fingerprint(one.examples), one.queries.tolist()) for one in rankings],
    )
