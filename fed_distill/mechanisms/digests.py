"""Digests of requests: equal ones have equal answers, noise included, and are charged once."""

import hashlib
from collections.abc import Callable

from fed_distill.config import Experiment
from fed_distill.models.weights import Weights
from fed_distill.storage.fingerprint import fingerprint, hash_tensors
from fed_distill.storage.versions import versions
from fed_distill.text.encoded import Encoded
from fed_distill.training.choosing import chosen_device
from fed_distill.training.trainer import Learner
from fed_distill.transport.messages import Downlink
from fed_distill.transport.requests import PROTOCOL, TrainRequest

SUMMED_BY = {"trainer", "cohort", "threads"}
"""Keys of ``[runtime]`` that change the order of summation: the difference between two answers with equal noise and
different rounding reveals the rounded values, amplified by a high learning rate."""


class Digests:
    """Computes hex digests of the requests to the merchants of one site; shared parts are hashed once.

    own: the site's secret and the identity of its stored answers; empty in a simulation. With a secret, digests cover
    all received bits, the order of summation, the software versions and the run: training again with another order or
    program would use the same noise, and the difference of both answers would contain none. They also cover the texts
    themselves, as a method may send statistics of them that their encoding does not determine.

    In a simulation, where the seed determines the noise anyway, weights and soft labels are represented by their
    federation and round (``TrainRequest.federation``), so that a run does not depend on rounding.
    """

    def __init__(
        self, experiment: Experiment, request: TrainRequest, down: Downlink, own: str, texts: Callable[[str], str]
    ) -> None:
        """texts: fingerprint of a merchant's own texts and those of the proxy set, by the merchant's name."""
        self._exact = bool(own) or not request.federation
        self._texts = texts if own else lambda merchant: ""
        sums = experiment.runtime.model_dump(mode="json", include=SUMMED_BY)
        sums["device"] = chosen_device(experiment.runtime.device).type
        if own:
            sums |= {"run": experiment.name, "versions": versions(), "protocol": PROTOCOL}
        self._base = hashlib.sha256()
        self._base.update(
            fingerprint(
                experiment=experiment.settings_of(request.arm),
                arm=request.arm,
                seed=request.seed,
                rate=request.learning_rate,
                test=request.test,
                federation=request.federation,
                round=down.round,
                sums=sums if self._exact else {},
                scalars=dict(down.scalars),
            ).encode()
        )
        self._base.update(own.encode())  # another secret gives another release
        for payload in down.payloads if self._exact else ():
            for name, tensors in payload.to_records().items():
                self._base.update(name.encode())
                hash_tensors(self._base, tensors)
        self._starts: dict[tuple[str, int], tuple[Weights, bytes]] = {}
        self._proxies: dict[int, tuple[Encoded, bytes]] = {}

    def of(self, blueprint: str, learner: Learner) -> str:
        """Return the digest for a learner that trains the student of ``blueprint``."""
        start = learner.weights
        known = blueprint, id(start)
        if known not in self._starts:
            hashed = hashlib.sha256(blueprint.encode())
            hash_tensors(hashed, start if self._exact else {})
            self._starts[known] = start, hashed.digest()
        whole = self._base.copy()
        whole.update(self._starts[known][1])
        whole.update(self._texts(learner.name).encode())
        if id(learner.proxy) not in self._proxies:
            hashed = hashlib.sha256()
            hash_tensors(hashed, learner.proxy)
            self._proxies[id(learner.proxy)] = learner.proxy, hashed.digest()
        whole.update(self._proxies[id(learner.proxy)][1])
        groups = {} if learner.groups is None else {"groups": learner.groups}
        hash_tensors(whole, {**learner.private, "labels": learner.labels, **groups})
        for values in (learner.references, learner.correction) if self._exact else ():
            hash_tensors(whole, values)
        return whole.hexdigest()
