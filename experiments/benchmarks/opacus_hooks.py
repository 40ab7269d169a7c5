"""One merchant after another with DP-SGD by Opacus: what one gets today for private local training.

Each merchant has a privacy engine of its own (its data are its own privacy unit), Poisson sampling at rate 1 /
steps, noise multiplier 1 and clipping norm 1. Transformers train with their embedding tables frozen and nn.LSTM
becomes Opacus's DPLSTM; a two-tower trains its whole table. The wrapped model is kept and only its weights are put
back for the next merchant, since wrapping again would cost time that Opacus need not spend.
"""

from functools import partial

import torch
from opacus import PrivacyEngine
from opacus.validators import ModuleValidator
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from experiments.benchmarks.contenders import Clock, Settings
from experiments.benchmarks.plain import add
from experiments.benchmarks.workload import Cohort, Shop, Weights, Workload, freeze_embeddings
from fed_distill import seeds
from fed_distill.models import TextModel
from fed_distill.models.transformer import Transformer

NOISE_MULTIPLIER = 1.0
MAX_GRAD_NORM = 1.0


def train(cohort: Cohort, settings: Settings, clock: Clock, mode: str = "hooks") -> None:
    """Train the cohort round by round. ``mode`` is Opacus's ``grad_sample_mode``: hooks or ghost."""
    workload = cohort.workload
    student = private_student(workload).to(settings.device)
    module: nn.Module = student
    merged = {name: value.clone() for name, value in student.state_dict().items()}
    drawn = seeds.derive(workload.seed, "benchmark noise")
    noise = torch.Generator(settings.device).manual_seed(drawn)
    sampling = torch.Generator().manual_seed(drawn)
    for _ in range(settings.rounds):
        broadcast, merged = merged, {}
        for shop in cohort.shops:
            student.load_state_dict(broadcast)
            module = _train_locally(module, student, shop, workload, mode, noise, sampling)
            add(merged, student, len(shop) / workload.examples())
        if settings.device != "cpu":
            clock.device_memory(torch.cuda.max_memory_allocated())
        clock.round_done(partial(_plain_names, merged, workload))


def _plain_names(weights: Weights, workload: Workload) -> Weights:
    """The weights by the plain student's names; DPLSTM has a second name for each of its own."""
    return {name: weights[name] for name in workload.new_student().state_dict()}


def private_student(workload: Workload) -> TextModel:
    """The student as Opacus can train it; weights and their names stay the same."""
    student = workload.new_student()
    if isinstance(student, Transformer):
        freeze_embeddings(student)
    fixed: TextModel = ModuleValidator.fix(student)
    return fixed.train()


def _train_locally(
    module: nn.Module,
    student: TextModel,
    shop: Shop,
    workload: Workload,
    mode: str,
    noise: torch.Generator,
    sampling: torch.Generator,
) -> nn.Module:
    """One epoch (in expectation) of one merchant; returns the wrapped module, to be used again."""
    trainable = [parameter for parameter in student.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=workload.learning_rate, weight_decay=0.0, fused=True)
    fields = {name: values.long() for name, values in shop.encoded.items()}
    examples = TensorDataset(*fields.values(), shop.labels)
    made = PrivacyEngine().make_private(
        module=module,
        optimizer=optimizer,
        criterion=nn.CrossEntropyLoss(),
        data_loader=DataLoader(examples, batch_size=workload.batch_size, generator=sampling),
        noise_multiplier=NOISE_MULTIPLIER,
        max_grad_norm=MAX_GRAD_NORM,
        noise_generator=noise,
        grad_sample_mode=mode,
    )
    wrapped, optimizer = made[0], made[1]
    criterion, loader = (made[2], made[3]) if mode == "ghost" else (nn.CrossEntropyLoss(), made[2])
    for *columns, labels in loader:
        batch = _batch(student, dict(zip(fields, columns, strict=True)), noise.device)
        loss = criterion(wrapped(batch).logits, labels.to(noise.device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    done: nn.Module = wrapped
    return done


def _batch(student: TextModel, columns: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    batch = {name: values.to(device) for name, values in columns.items()}
    return student.collate(batch, torch.arange(len(next(iter(batch.values()))), device=device))
