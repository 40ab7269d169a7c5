"""Apple's pfl (0.6) on the same round: SimulatedBackend, FederatedAveraging and PyTorchModel, as its benchmarks do.

pfl trains one user after another on one model in place, sums the differences and applies their mean by a central SGD
at rate 1. It takes batches in the order of the data and keeps its slices between rounds. Its evaluation of every
user happens in the warm-up round only. It may run in an interpreter of its own.
"""

import os
from collections.abc import Callable
from functools import cache, partial

import torch
import torch.nn.functional as F
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.data.sampling import MinimizeReuseUserSampler
from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn

from experiments.benchmarks.contenders import Clock, Settings
from experiments.benchmarks.workload import Cohort
from fed_distill.models import TextModel


class PflStudent(nn.Module):
    """The student with the two methods that pfl's PyTorchModel asks for."""

    def __init__(self, student: TextModel) -> None:
        super().__init__()
        self.student = student

    def loss(self, labels: Tensor, **encoded: Tensor) -> Tensor:
        """Mean cross-entropy of a batch."""
        batch = self.student.collate(encoded, torch.arange(len(labels), device=labels.device))
        return F.cross_entropy(self.student(batch).logits, labels)

    @torch.no_grad()
    def metrics(self, labels: Tensor, **encoded: Tensor) -> dict[str, Weighted]:
        """What pfl reports of a user."""
        return {"loss": Weighted(float(self.loss(labels, **encoded)) * len(labels), len(labels))}


class Rounds(TrainingProcessCallback):  # type: ignore[misc]  # pfl has no type information
    """Tells the clock of every central iteration."""

    def __init__(self, clock: Clock, student: TextModel, device: str) -> None:
        self.clock, self.student, self.device = clock, student, device

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: PyTorchModel, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        """See pfl."""
        if self.device != "cpu":
            self.clock.device_memory(torch.cuda.max_memory_allocated())
        self.clock.round_done(self.student.state_dict)
        return False, Metrics()


def train(cohort: Cohort, settings: Settings, clock: Clock) -> None:
    """Train the cohort round by round."""
    os.environ["PFL_PYTORCH_DEVICE"] = settings.device
    workload = cohort.workload
    student = workload.new_student().train()
    model = PyTorchModel(
        module := PflStudent(student),
        local_optimizer_create=partial(torch.optim.AdamW, weight_decay=0.0, fused=True),
        central_optimizer=torch.optim.SGD(module.parameters(), lr=1.0),
    )
    users = FederatedDataset(_users(cohort), MinimizeReuseUserSampler(list(range(len(cohort.shops)))))
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=settings.rounds,
            evaluation_frequency=settings.rounds,
            train_cohort_size=len(cohort.shops),
            val_cohort_size=0,
        ),
        backend=SimulatedBackend(training_data=users, val_data=users, postprocessors=[WeightByDatapoints()]),
        model=model,
        model_train_params=NNTrainHyperParams(
            local_num_epochs=1,
            local_learning_rate=workload.learning_rate,
            local_batch_size=workload.batch_size,
        ),
        model_eval_params=NNEvalHyperParams(local_batch_size=None),
        callbacks=[Rounds(clock, student, settings.device)],
        send_metrics_to_platform=False,
    )


def _users(cohort: Cohort) -> Callable[[int], PyTorchTensorDataset]:
    @cache
    def user(number: int) -> PyTorchTensorDataset:
        shop = cohort.shops[number]
        return PyTorchTensorDataset({**shop.encoded, "labels": shop.labels}, user_id=str(number))

    return user
