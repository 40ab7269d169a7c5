"""Identities of federations, so that merchants are charged once for each."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from fed_distill.config import Experiment
from fed_distill.coordinator.released import Released
from fed_distill.data.fingerprint import federated_fingerprint
from fed_distill.experiment.teaching import Teaching
from fed_distill.models.weights import Weights
from fed_distill.storage.fingerprint import fingerprint, hash_tensors


@dataclass
class Identities:
    """Identities of the federations of one seed."""

    experiment: Experiment
    seed: int
    teaching: Teaching

    def of(self, arm: str, starts: Mapping[str, Weights], released: Released | None) -> str:
        """Return the identity of a federation.

        With noise at merchants, or in a simulation, it is a digest of the server's settings and data: an identical run
        is the same release. Real sites combine it with their own data and secrets. With noise at a real server, which
        does not have the merchants' data, the identity is random and kept only if this run is resumed.

        :param starts: initial weights by student name
        :param released: record of released rounds; None except with noise at a real server
        """
        if released is not None:
            return released.name(f"seed {self.seed}, {arm}")
        hashed = hashlib.sha256(self._data_fingerprint.encode())
        hashed.update(fingerprint(settings=self.experiment.settings_of(arm), arm=arm, seed=self.seed).encode())
        hash_tensors(hashed, {"teacher": self.teaching.labels})
        for name, weights in sorted(starts.items()):
            hashed.update(name.encode())
            hash_tensors(hashed, weights)
        return hashed.hexdigest()[:32]

    @cached_property
    def _data_fingerprint(self) -> str:
        return federated_fingerprint(self.teaching.data)
