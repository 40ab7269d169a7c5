"""Selective-FD whose merchants answer the examples that are most typical of their own data, by density ratio.

Shao et al., "Selective knowledge sharing for privacy-preserving federated distillation without a good teacher", Nature
Communications 2024, section Methods: a merchant estimates the ratio of the density of its own data to that of other
data by kernelized unconstrained least-squares importance fitting, KuLSIF (Kanamori et al., "Statistical analysis of
kernel-based least-squares density-ratio estimation", Machine Learning 2012), and answers where it is high. The paper's
other data are drawn uniformly from the space of representations; here they are the proxy set, and the kernel is that of
texts (``text.density_ratio``).
"""

from dataclasses import dataclass
from typing import ClassVar

from fed_distill.methods.base import Trained
from fed_distill.methods.selective_fd import SelectiveFD
from fed_distill.payloads.density_selected_soft_labels import DensitySelectedSoftLabels
from fed_distill.transport.messages import Downlink, Kinds, Uplink


@dataclass(frozen=True)
class SelectiveFDKuLSIF(SelectiveFD):
    """answer_share: share of the proxy set that a merchant answers, by density ratio. Other options: see
    ``selective-fd``."""

    sends: ClassVar[Kinds] = (DensitySelectedSoftLabels,)

    def uplink(self, trained: Trained, down: Downlink) -> Uplink:
        """Send probabilities and indices of the proxy examples with the highest density ratio."""
        probabilities, answered = trained.predict_proxy(), self.highest(trained.density_ratio())
        answers = DensitySelectedSoftLabels(probabilities[answered], answered)
        return Uplink(trained.merchant, trained.examples, (answers,))
