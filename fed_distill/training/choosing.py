"""Selection of an experiment's trainer and device."""

import torch

from fed_distill.config import RuntimeConfig, TrainerConfig
from fed_distill.errors import ConfigError
from fed_distill.training.cohort.trainer import CohortTrainer
from fed_distill.training.sequential import SequentialTrainer
from fed_distill.training.trainer import Trainer


def build_trainer(training: TrainerConfig, runtime: RuntimeConfig) -> Trainer:
    """Build the trainer of an experiment.

    :raises ConfigError: the device does not exist, or the sequential trainer does not support a setting
    """
    device = chosen_device(runtime.device)
    if runtime.trainer == "cohort":
        return CohortTrainer(training, device, runtime.cohort)
    if training.precision != "float32":
        raise ConfigError(f"training.precision = {training.precision!r} requires runtime.trainer = 'cohort'")
    if runtime.device == "cuda":
        raise ConfigError("runtime.device = 'cuda' requires runtime.trainer = 'cohort'")
    return SequentialTrainer(training)


def chosen_device(name: str) -> torch.device:
    """Return the torch device for ``runtime.device``."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("runtime.device = 'cuda', but torch finds no GPU: install torch with CUDA, or set 'auto'")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
