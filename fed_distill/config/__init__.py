"""An experiment: every table of its file is a class here, and every key a field with its meaning beside it."""

from fed_distill.config.data import DataConfig
from fed_distill.config.distillation import (
    AssistantConfig,
    DistillConfig,
    EnsembleMember,
    MaskedConfig,
    StudentConfig,
    TeacherConfig,
    Transfer,
)
from fed_distill.config.experiment import CONTROLS, Experiment, parse_setting
from fed_distill.config.federation import AdaptationConfig, FederationConfig, TransportConfig
from fed_distill.config.optimizer import OptimizerChanges, OptimizerConfig
from fed_distill.config.poisoning import PoisoningConfig
from fed_distill.config.privacy import UNPROTECTED, PrivacyConfig, is_protected
from fed_distill.config.runtime import RuntimeConfig
from fed_distill.config.tables import PositiveFloat, PositiveInt, Share
from fed_distill.config.training import (
    AdversarialConfig,
    AugmentationConfig,
    SharedTrainingConfig,
    TrainerConfig,
    TrainingConfig,
)

__all__ = [
    "CONTROLS",
    "UNPROTECTED",
    "AdaptationConfig",
    "AdversarialConfig",
    "AssistantConfig",
    "AugmentationConfig",
    "DataConfig",
    "DistillConfig",
    "EnsembleMember",
    "Experiment",
    "FederationConfig",
    "MaskedConfig",
    "OptimizerChanges",
    "OptimizerConfig",
    "PoisoningConfig",
    "PositiveFloat",
    "PositiveInt",
    "PrivacyConfig",
    "RuntimeConfig",
    "Share",
    "SharedTrainingConfig",
    "StudentConfig",
    "TeacherConfig",
    "TrainerConfig",
    "TrainingConfig",
    "Transfer",
    "TransportConfig",
    "is_protected",
    "parse_setting",
]
