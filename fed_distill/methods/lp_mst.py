"""LP-MST: merchants send randomized labels of public texts, and the server trains on all of them.

Ghazi, Golowich, Kumar, Manurangsi and Zhang, "Deep learning with label differential privacy", NeurIPS 2021, algorithm 3
(label privacy by multi-stage training): labels are randomized with the previous stage's model as prior, and the next
model is trained on everything that was released. It requires privacy by ``label``, which draws the labels
(``mechanisms.label``): round 1 is stage 1, whose prior is a student that has seen only public data; with
``privacy.stages = 2`` the second half of the labels is released in round ``privacy.second_stage``.

What a merchant would train at home on its randomized labels is a function of them and of public texts in the order of
its table. Sending them in an order that does not depend on labels discloses nothing more about labels, and the server
does not train on the few noisy labels of one merchant but on those of all. Texts and who has them are disclosed, which
that unit requires to be public. A Byzantine merchant may send any labels, for its share of all examples
(``federation.max_share``): there is nothing to aggregate, so that ``federation.aggregator`` is not used.

Deviations from the paper: targets are the probabilities of the true labels given the released ones, with the student
before each pass, at ``privacy.label_temperature``, as prior, which is expectation maximization; the paper has the
released labels (``privacy.targets = "labels"``). The student of a stage is trained onwards, not anew. One round is
enough for one stage if all merchants participate: in a later one they send the same labels, and the server trains on
them again.

The defaults were chosen on validation products of PriceRunner's first split.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from fed_distill.config import PositiveFloat, PositiveInt
from fed_distill.errors import UplinkRejected
from fed_distill.methods.base import GlobalState, Keeps, Service, Services, Trained, replace
from fed_distill.payloads.released_labels import ReleasedLabels
from fed_distill.payloads.student_weights import StudentWeights
from fed_distill.training.plan import Duration, Plan
from fed_distill.transport.messages import Downlink, Kinds, Uplink


@dataclass(frozen=True)
class LPMST:
    """passes: the server's passes over the labels that it received in a round, each with new targets.
    learning_rate_scale: factor of the rate of [training.server]."""

    passes: PositiveInt = 2
    learning_rate_scale: PositiveFloat = 0.3
    sends: ClassVar[Kinds] = (ReleasedLabels,)
    receives: ClassVar[Kinds] = (StudentWeights,)
    keeps: ClassVar[Keeps] = "nothing"
    uses: ClassVar[tuple[Service, ...]] = ("train_on_released",)

    def broadcast(self, state: GlobalState) -> Downlink:
        """Send the student, which is the prior of the labels that are drawn in this round."""
        return Downlink(state.round + 1, (StudentWeights(state.weights),))

    def private_durations(self, round: int) -> tuple[Duration, ...]:
        """Train nothing at the merchant."""
        return ()

    def plan(self, down: Downlink) -> Plan:
        """Train nothing at the merchant."""
        return Plan()

    def uplink(self, trained: Trained, down: Downlink) -> Uplink:
        """Send the randomized labels, and as weight their number."""
        released = trained.released_labels()
        return Uplink(trained.merchant, len(released.labels), (released,))

    def merge(self, state: GlobalState, up: Iterable[Uplink], server: Services) -> GlobalState:
        """Train on all labels; of a merchant at most as many as the examples that it counts for."""
        released = {
            uplink.merchant: sent.at_most(uplink.examples, uplink.merchant)
            for uplink in up
            if (sent := uplink.get(ReleasedLabels)) is not None
        }
        if not released:
            raise UplinkRejected("no merchant sent randomized labels")
        weights = server.train_on_released(state.weights, released, self.passes, self.learning_rate_scale)
        return replace(state, round=state.round + 1, weights=weights)
