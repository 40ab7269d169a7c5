"""The plain PyTorch loop, the 1x of every table: one merchant after another, and a running average.

No framework and no message: what anybody would write first. Each merchant gets a full copy of the global weights, a
fresh fused AdamW and its own batches; the copy is added to the average, so that memory does not grow with merchants.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.benchmarks.contenders import Clock, Settings
from experiments.benchmarks.workload import Cohort, Shop, Workload
from fed_distill.models import TextModel


def train(cohort: Cohort, settings: Settings, clock: Clock) -> None:
    """Train the cohort round by round."""
    workload = cohort.workload
    student = workload.new_student().to(settings.device)
    merged = _copied(student)
    for _ in range(settings.rounds):
        broadcast, merged = merged, {}
        for shop in cohort.shops:
            student.load_state_dict(broadcast)
            train_locally(student, shop.to(settings.device), workload)
            add(merged, student, len(shop) / workload.examples())
        if settings.device != "cpu":
            clock.device_memory(torch.cuda.max_memory_allocated())
        clock.round_done(merged.copy)


def train_locally(student: TextModel, shop: Shop, workload: Workload) -> None:
    """One epoch of one merchant; ``student`` is changed."""
    optimizer = torch.optim.AdamW(student.parameters(), lr=workload.learning_rate, weight_decay=0.0, fused=True)
    student.train()
    for index in torch.split(torch.arange(len(shop), device=shop.labels.device), workload.batch_size):
        logits = student(student.collate(shop.encoded, index)).logits
        loss = F.cross_entropy(logits, shop.labels[index])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()


@torch.no_grad()
def add(total: dict[str, Tensor], student: TextModel, share: float) -> None:
    """Add ``share`` times the student's weights to the running average ``total``."""
    for name, value in student.state_dict().items():
        if name in total:
            total[name].add_(value, alpha=share)
        else:
            total[name] = value * share


def _copied(student: TextModel) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in student.state_dict().items()}
