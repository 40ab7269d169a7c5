"""FedMD whose consensus weights each merchant, per proxy example, by its expertise: how close its own data are.

Wang et al., "DaFKD: Domain-aware federated knowledge distillation", CVPR 2023: a mean over merchants dilutes what each
of them has learned, so that soft labels are weighted, per example, by how likely the example belongs to a merchant's
domain. DaFKD estimates this by a discriminator that each merchant trains against generated images; FedD3A (Su et al.,
"Domain discrepancy aware distillation for model aggregation in federated learning", 2022) by the angle between an
example's features and a merchant's subspace. The rule behind both is the distribution-weighted combination of Mansour
et al., "Domain adaptation with multiple sources", NeurIPS 2008, section 3:

    sum over k of D_k(x) p_k(x) / sum over k of D_k(x),

for hypotheses p_k trained on densities D_k. Here D_k is a kernel density estimate over hashed words and character
n-grams, with the von Mises-Fisher kernel exp(concentration * cosine), approximated by its largest term: one number in
[0, 1] per example, the largest cosine with a training example of the merchant, labelled or not, which it computes and
sends beside its soft labels. Merchants have equal weights.

With privacy by ``example`` or ``group``, D_k(x) is instead the root of the mean cosine with a merchant's labelled
examples, computed from a noised sum of their features that it releases once (``privacy.text_sum``). So is the choice of
what it answers: from the largest cosines, both would reveal its texts.

A merchant answers only the examples that it is most expert on: others would get a negligible weight. The teacher
labels what no merchant answers and, with ``teacher_share``, has a constant share of all labels. Expertise cannot be
verified: a Byzantine merchant that claims most of it determines ``answer_share`` of the proxy set but for the teacher's
share.

The defaults are for one round from the server's student: many epochs at a low rate, so that a student that has few
labels remains near the start. They were chosen on PriceRunner's validation products.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fed_distill.config import PositiveFloat
from fed_distill.errors import UplinkRejected
from fed_distill.methods.base import GlobalState, Trained
from fed_distill.methods.fedmd import FedMD
from fed_distill.payloads.expert_soft_labels import ExpertSoftLabels
from fed_distill.transport.messages import Downlink, Kinds, Uplink


@dataclass(frozen=True)
class ExpertFD(FedMD):
    """answer_share: share of the proxy set that a merchant answers, by expertise. concentration: that of the kernel;
    the higher it is, the more the most similar merchant dominates, and near 0 all that answer count alike. Other
    options: see ``fedmd``."""

    pretrain_epochs: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 20.0
    private_rate_scale: PositiveFloat = 0.1
    teacher_share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    answer_share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.25
    concentration: Annotated[float, Field(gt=0.0, le=500.0)] = 10.0
    sends: ClassVar[Kinds] = (ExpertSoftLabels,)

    def uplink(self, trained: Trained, down: Downlink) -> Uplink:
        """Send probabilities, expertise and indices of the proxy examples with the highest expertise."""
        probabilities, expertise = trained.predict_proxy(), trained.expertise()
        answers = ExpertSoftLabels.most_expert(probabilities, expertise, self._most(len(expertise)))
        return Uplink(trained.merchant, trained.examples, (answers,))

    def agree(self, state: GlobalState, up: Iterable[Uplink]) -> Tensor:
        """Return the distribution-weighted combination of the answers; without answers, the teacher's soft labels."""
        teacher = state.teacher_labels
        total = torch.zeros(teacher.shape, dtype=torch.float64)
        weights = torch.zeros(len(teacher), dtype=torch.float64)
        merged = 0
        for uplink in up:
            if (sent := uplink.get(ExpertSoftLabels)) is not None:
                sent = sent.at_most(self._most(len(teacher)))
                weight = torch.exp(self.concentration * (sent.expertise - 1.0))
                total[sent.answered] += weight.unsqueeze(1) * sent.probabilities
                weights[sent.answered] += weight
                merged += 1
        if not merged:
            raise UplinkRejected("no merchant sent soft labels that could be merged")
        answered = weights.unsqueeze(1) > 0.0
        return torch.where(answered, total / torch.where(answered, weights.unsqueeze(1), 1.0), teacher)

    def _most(self, proxy: int) -> int:
        """Return the maximum number of answers of a merchant, which holds for Byzantine ones too."""
        return math.ceil(self.answer_share * proxy)
