"""The trainer and device that an experiment names."""

import pytest
import torch

from fed_distill.config import RuntimeConfig, TrainerConfig
from fed_distill.errors import ConfigError
from fed_distill.training.choosing import build_trainer, chosen_device
from fed_distill.training.cohort.trainer import CohortTrainer
from fed_distill.training.sequential import SequentialTrainer


@pytest.fixture
def gpu(monkeypatch):
    """A function that says whether torch finds a GPU."""
    return lambda found: monkeypatch.setattr(torch.cuda, "is_available", lambda: found)


def test_cohorts_are_the_default_with_what_the_experiment_says(gpu):
    gpu(False)
    training = TrainerConfig(batch_size=5, precision="bfloat16")
    trainer = build_trainer(training, RuntimeConfig(cohort=7))
    assert isinstance(trainer, CohortTrainer)
    assert (trainer.config, trainer.device, trainer.cohort) == (training, torch.device("cpu"), 7)


def test_the_sequential_trainer_is_built_by_name(gpu):
    gpu(False)
    trainer = build_trainer(TrainerConfig(batch_size=5), RuntimeConfig(trainer="sequential"))
    assert isinstance(trainer, SequentialTrainer) and trainer.config.batch_size == 5


@pytest.mark.parametrize(
    ("name", "found", "expected"),
    [("auto", True, "cuda"), ("auto", False, "cpu"), ("cpu", True, "cpu"), ("cuda", True, "cuda")],
)
def test_a_gpu_is_taken_if_it_is_there_and_wanted(gpu, name, found, expected):
    gpu(found)
    assert chosen_device(name).type == expected


def test_a_gpu_that_is_not_there_is_named(gpu):
    gpu(False)
    for trainer in ("cohort", "sequential"):
        with pytest.raises(ConfigError, match=r"runtime\.device = 'cuda'.*no GPU"):
            build_trainer(TrainerConfig(), RuntimeConfig(device="cuda", trainer=trainer))


def test_what_only_cohorts_can_is_refused_to_the_sequential_trainer(gpu):
    gpu(True)
    for precision in ("tf32", "bfloat16"):
        with pytest.raises(
            ConfigError, match=rf"training\.precision = '{precision}' requires runtime\.trainer = 'cohort'"
        ):
            build_trainer(TrainerConfig(precision=precision), RuntimeConfig(trainer="sequential"))
    with pytest.raises(ConfigError, match=r"runtime\.device = 'cuda' requires runtime\.trainer = 'cohort'"):
        build_trainer(TrainerConfig(), RuntimeConfig(trainer="sequential", device="cuda"))
