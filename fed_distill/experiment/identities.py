"""What names a federation, so that its merchants pay for it once."""

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
    """Names of the federations of one seed."""

    experiment: Experiment
    seed: int
    teaching: Teaching

    def of(self, arm: str, starts: Mapping[str, Weights], released: Released | None) -> str:
        """What names this very federation, so that merchants pay for it once.

        Where merchants add the noise, or in a simulation, it is a digest of all that decides the result, as far as the
        server has it: run again, it is the same release. Real sites add what they have to it, and their secrets. Where
        a real server adds the noise it knows nobody's data, and a federation is new unless this run goes on with it.
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
