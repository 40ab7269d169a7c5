"""The trainer that an experiment names, on the device that it names."""

import torch

from fed_distill.config import RuntimeConfig, TrainerConfig
from fed_distill.errors import ConfigError
from fed_distill.training.cohort.trainer import CohortTrainer
from fed_distill.training.sequential import SequentialTrainer
from fed_distill.training.trainer import Trainer


def build_trainer(training: TrainerConfig, runtime: RuntimeConfig) -> Trainer:
    """Raise ConfigError if the device is not there, or the sequential trainer is asked for what only cohorts can."""
    device = chosen_device(runtime.device)
    if runtime.trainer == "cohort":
        return CohortTrainer(training, device, runtime.cohort)
    if training.precision != "float32":
        raise ConfigError(f"training.precision = {training.precision!r} needs runtime.trainer = 'cohort'")
    if runtime.device == "cuda":
        raise ConfigError("runtime.device = 'cuda' needs runtime.trainer = 'cohort'")
    return SequentialTrainer(training)


def chosen_device(name: str) -> torch.device:
    """The torch device for ``runtime.device``."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("runtime.device = 'cuda', and torch finds no GPU: install torch with CUDA, or take 'auto'")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
