"""Experiment configuration: one class for each table of the file, one field with a description for each key."""

from fed_distill.config.byzantine import ByzantineConfig
from fed_distill.config.controls import CONTROLS
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
from fed_distill.config.experiment import Experiment
from fed_distill.config.federation import AdaptationConfig, FederationConfig, TransportConfig
from fed_distill.config.optimizer import OptimizerChanges, OptimizerConfig
from fed_distill.config.privacy import (
    UNPROTECTED,
    DPSGDConfig,
    FreezingConfig,
    GroupsConfig,
    LabelsConfig,
    OwnPrivacy,
    PrivacyConfig,
    ProtectedConfig,
    UpdatesConfig,
    VotesConfig,
    is_protected,
)
from fed_distill.config.runtime import RuntimeConfig
from fed_distill.config.settings import parse_setting
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
    "ByzantineConfig",
    "DPSGDConfig",
    "DataConfig",
    "DistillConfig",
    "EnsembleMember",
    "Experiment",
    "FederationConfig",
    "FreezingConfig",
    "GroupsConfig",
    "LabelsConfig",
    "MaskedConfig",
    "OptimizerChanges",
    "OptimizerConfig",
    "OwnPrivacy",
    "PositiveFloat",
    "PositiveInt",
    "PrivacyConfig",
    "ProtectedConfig",
    "RuntimeConfig",
    "Share",
    "SharedTrainingConfig",
    "StudentConfig",
    "TeacherConfig",
    "TrainerConfig",
    "TrainingConfig",
    "Transfer",
    "TransportConfig",
    "UpdatesConfig",
    "VotesConfig",
    "is_protected",
    "parse_setting",
]
