"""Unit ``label``: protects the label of one example whose texts are public, by randomized response with a prior.

Ghazi, Golowich, Kumar, Manurangsi and Zhang, "Deep learning with label differential privacy", NeurIPS 2021; for labels
with gains Ghazi et al., "Regression with label differential privacy", ICLR 2023. Each label is randomized once
(``privacy.randomized_response``). All that a merchant trains and sends, in all rounds, is computed from the randomized
labels and from public texts, so it is post-processing: any payload is covered, and rounds are free.

The prior is what the merchant's initial student predicts for an example's texts, which is public: the student of the
downlink of its first round or, for methods with own students, the initial one that the server sends. This is
RRWithPrior or RRonBins with a prior from public data. With ``privacy.stages = 2``, half of the examples have this
prior, and the other half that of the student of a later round, which was trained on the first half: LP-2ST (algorithm 3
with two stages; the paper's first stage has a uniform prior). The halves are disjoint: each label is randomized once.

Both papers train on what was released. Here the targets of a round are the probabilities of the true label given the
released one, with the predictions of the round's received student as prior: one step of expectation maximization for
the channel's likelihood (Dempster, Laird and Rubin 1977), of which forward correction is the gradient (Patrini et al.,
CVPR 2017, theorem 2). Students are too sure (Guo et al., ICML 2017), and then learn nothing of labels that they predict
wrongly; ``privacy.label_temperature`` flattens predictions in the targets and in the loss with them
(``training.uncertain_labels``). The draw has the prior as it is, or at ``privacy.prior_temperature``.

Examples with equal texts have one label, their most frequent one, and one draw: with a draw for each copy, a label that
a merchant has n times would cost n times epsilon.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fed_distill.config import Experiment, FederationConfig, LabelsConfig, PrivacyConfig
from fed_distill.data.dataset import IntArray
from fed_distill.data.examples import UNLABELED, Examples
from fed_distill.errors import ConfigError, TrainingError
from fed_distill.mechanisms.base import Protecting, Words
from fed_distill.mechanisms.revealed import Revealed, noise, scores, validation
from fed_distill.payloads.base import Payload
from fed_distill.privacy.exposure import MOVED_BY, LabelSpend
from fed_distill.privacy.randomized_response import bins, candidates, posterior, randomized
from fed_distill.seeds import Keystream, Part
from fed_distill.storage.fingerprint import fingerprint
from fed_distill.transport.messages import Kinds

LABEL_SHIFT = 8.0
"""Change of a student's log-odds that a released label asks for by default, where epsilon is not larger; chosen on
validation products of PriceRunner."""
_COMPUTED = "computed from randomized labels and public texts"


@dataclass(frozen=True)
class Draw:
    """Randomized labels of some examples.

    digest: of everything that determines them, the site's secret included; equal digests have equal labels. outputs:
    the class that is released for each class, int64 ``[examples, classes]``, see ``privacy.randomized_response``.
    labels: int64 ``[examples]``.
    """

    digest: str
    outputs: Tensor
    labels: Tensor


@dataclass(frozen=True)
class ByLabel(Protecting):
    """Randomized response on the labels of a merchant's training examples."""

    settings: LabelsConfig = field(default_factory=LabelsConfig)
    moved_by: ClassVar[float] = MOVED_BY["label"]
    gaussian: ClassVar[bool] = False

    @property
    def words(self) -> Words:
        """The guarantee for a label."""
        return Words(
            hides="the label of any one training example of a merchant, but not its texts",
            trusted="the merchant itself, which randomizes its labels before it trains, and the supplier of the code "
            "that it runs",
            title="The label of one example",
            promise="An observer of everything that a merchant sends, in all rounds, who knows all texts and all other "
            "labels, can hardly tell which label any one example of that merchant has. That the merchant has this "
            "example is not hidden.",
            counts="a merchant's training examples",
            assumption="Each label is randomized once, examples of one merchant with equal texts have one label, and "
            "the prior does not depend on it. Two data sets are "
            "neighbours if the label of one example of one merchant differs; δ is 0.",
        )

    def covers(self, kind: type[Payload]) -> str | None:
        """Cover every payload: labels are randomized before anything is computed from them."""
        return _COMPUTED

    def check(self, experiment: Experiment, federation: FederationConfig, sends: Kinds) -> None:
        """Raise ConfigError unless texts are declared public, and each stage has a round."""
        if not self.settings.texts_public:
            raise ConfigError(
                f"privacy.unit = {self.name!r} hides labels only, and not the texts of training examples nor which of "
                "them a merchant has: set privacy.texts_public = true if these are public, or another unit"
            )
        if self.settings.stages == 1 and self.settings.second_stage is not None:
            raise ConfigError("privacy.second_stage requires privacy.stages = 2: set it, or remove second_stage")
        if not self.trains_on_posterior and self.settings.label_temperature is not None:
            raise ConfigError(
                "privacy.label_temperature requires privacy.targets = 'posterior': set it, or remove label_temperature"
            )
        if self.settings.stages > 1 and self.second_stage(federation.rounds) > federation.rounds:
            raise ConfigError(
                f"privacy.stages = 2 begins its second stage in round {self.second_stage(federation.rounds)}, but "
                f"federation {federation.title} has {federation.rounds}: lower privacy.second_stage, or set stages = 1"
            )

    def check_covered(self, method: str, sends: Kinds) -> None:
        """Accept every method: see ``covers``."""

    def second_stage(self, rounds: int) -> int:
        """Return the round, from 1, in which the second half is randomized in a federation of ``rounds`` rounds."""
        return self.settings.second_stage or max(2, rounds // 2 + 1)

    def due(self, examples: Examples, round: int, rounds: int) -> list[tuple[int, Tensor]]:
        """Return the parts of ``examples`` that a merchant trains on in a round.

        The half of an example depends on its own texts only, so that it is the same whatever else the merchant has. A
        merchant without examples in the first half trains on the second one from the beginning.

        :returns: number of each part (0: all examples, in one stage) and its rows, int64
        """
        every = torch.arange(len(examples))
        if self.settings.stages == 1:
            return [(0, every)]
        second = torch.tensor([_in_second_half(*texts) for texts in _texts(examples)], dtype=torch.bool)
        halves = [(number, every[rows]) for number, rows in ((1, ~second), (2, second)) if bool(rows.any())]
        return halves if round >= self.second_stage(rounds) else halves[:1]

    def distinct(self, examples: Examples, labels: Tensor) -> tuple[IntArray, IntArray, Tensor]:
        """Return the distinct texts of ``examples``.

        :param labels: true labels, int64 ``[examples]``
        :returns: the first row of each ``[texts]``, the text of each example ``[examples]``, and the most frequent
            label of each text, int64 ``[texts]``; of several, the first class
        :raises TrainingError: an example has no label
        """
        if bool((labels == UNLABELED).any()):
            raise TrainingError("a training example has no label: only labelled examples can be trained on privately")
        number = {texts: at for at, texts in enumerate(dict.fromkeys(_texts(examples)))}
        of = np.asarray([number[texts] for texts in _texts(examples)], dtype=np.int64)
        votes = np.zeros((len(number), int(labels.max()) + 1 if len(labels) else 0), dtype=np.int64)
        np.add.at(votes, (of, labels.numpy()), 1)
        return np.unique(of, return_index=True)[1], of, torch.from_numpy(votes.argmax(axis=1))

    def basis(self, examples: Examples, labels: Tensor, epsilon: float) -> str:
        """Return a fingerprint of what is randomized: texts, labels ``[examples]`` and epsilon."""
        return fingerprint(texts=list(_texts(examples)), labels=labels.tolist(), epsilon=epsilon)

    def randomize(
        self,
        labels: Tensor,
        prior: Tensor,
        spend: LabelSpend,
        basis: str,
        own: Part,
        merchant: str,
        gains: Sequence[float] | None = None,
    ) -> Draw:
        """Randomize labels; a function of its arguments.

        The random numbers depend on all that determines the distribution of the output: with other labels, texts,
        outputs or epsilon they are independent, and this is another release.

        :param labels: true labels, int64 ``[examples]``
        :param prior: probabilities ``[examples, classes]``
        :param spend: epsilon and part
        :param basis: see ``basis``
        :param own: the site's secret, or in a simulation the run's seed
        :param merchant: name of the merchant
        :param gains: gain of each class: RRonBins; None: RRWithPrior
        :raises TrainingError: the prior is NaN, or a gain not finite
        """
        prior = _distribution(prior)
        try:
            if gains is None:
                outputs = candidates(prior, spend.epsilon)
            else:
                outputs = bins(prior, torch.tensor(gains, dtype=torch.float64), spend.epsilon)
        except ValueError as error:
            raise TrainingError(f"labels cannot be randomized: {error}") from error
        place: tuple[Part, ...] = (merchant, "labels", spend.part, basis, outputs.numpy().tobytes())
        digest = hashlib.sha256(Keystream(own, *place, "digest").uniform(4).numpy().tobytes()).hexdigest()
        drawn = randomized(labels, outputs, spend.epsilon, Keystream(own, *place, "noise"))
        return Draw(digest, outputs, drawn)

    def label_temperature(self, epsilon: float) -> float:
        """Return the temperature of predictions in targets and their loss.

        A released label changes the log-odds of two classes at this temperature by epsilon at most, those of the
        student by epsilon times the temperature: by default ``LABEL_SHIFT``, or epsilon if that is larger. A method
        with other terms in the loss of private examples has temperature 1 (``merchant.labels``).
        """
        chosen = self.settings.label_temperature
        return max(1.0, LABEL_SHIFT / epsilon) if chosen is None else chosen

    @property
    def trains_on_posterior(self) -> bool:
        """Whether training targets are probabilities of the true label; otherwise they are the randomized labels."""
        return self.settings.targets == "posterior"

    def targets(self, labels: Tensor, outputs: Tensor, prior: Tensor, epsilon: float) -> Tensor:
        """Return the probabilities of the true labels to train with, ``[examples, classes]``.

        :param labels: released labels, int64 ``[examples]``
        :param outputs: see ``Draw``
        :param prior: predictions of the student before this training ``[examples, classes]``
        :param epsilon: epsilon of a label
        """
        return posterior(labels, _distribution(prior), outputs, epsilon)

    def disclose(
        self, config: PrivacyConfig, sends: Kinds, personal: bool = False, *, reproducible_noise: bool = True
    ) -> list[Revealed]:
        """List what leaves a merchant."""
        return [
            *(Revealed(kind.disclosure, _COMPUTED) for kind in sends),
            Revealed("texts of its training examples", "not hidden: declared public by privacy.texts_public"),
            Revealed("which examples it has, which are labelled, and how many", "not hidden"),
            Revealed("which embedding rows it sends", "not hidden: those of its training texts"),
            Revealed("training losses", _COMPUTED),
            Revealed("its participation in a round, its refusals, the duration of training", "not hidden"),
            *scores(config, personal),
            validation(reproducible_noise),
            noise("each site", reproducible_noise),
        ]


def _distribution(prior: Tensor) -> Tensor:
    """Return float32 probabilities ``[examples, classes]`` as float64 that sum to 1; raise TrainingError if NaN."""
    prior = prior.double()
    if not bool(prior.isfinite().all()):
        raise TrainingError("the received student cannot be a prior of labels: it predicts NaN")
    return prior / prior.sum(dim=1, keepdim=True)


def _texts(examples: Examples) -> list[tuple[str, ...]]:
    """Return the texts of each example."""
    return list(zip(examples.texts, *([] if examples.pairs is None else [examples.pairs]), strict=True))


def _in_second_half(*texts: str) -> bool:
    return bool(hashlib.sha256(fingerprint(half=texts).encode()).digest()[0] & 1)
