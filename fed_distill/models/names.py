"""Names of the teachers and students; checking them imports neither torch nor transformers."""

import difflib
from pathlib import Path

from fed_distill.config import TeacherConfig
from fed_distill.errors import ConfigError
from fed_distill.registry import Registry

STUDENTS = Registry(
    "student",
    {
        "two-tower": "fed_distill.models.two_tower:TwoTower",
        "static": "fed_distill.models.static:static",
        "history-tower": "fed_distill.models.history_tower:HistoryTower",
        "lstm": "fed_distill.models.lstm:LSTM",
        "bert-mini": "fed_distill.models.bert:bert_mini",
        "distilbert": "fed_distill.models.bert:distilbert",
        "mobilebert": "fed_distill.models.bert:mobilebert",
    },
    built_in=(
        "fed_distill.models.transformer:Transformer",
        "fed_distill.models.static:Static",
        "fed_distill.models.pair:Pair",
        "fed_distill.models.meta_learner:MetaLearner",
    ),
)
TEACHERS = Registry(
    "teacher",
    {
        "minilm": "fed_distill.models.pretrained:minilm",
        "bert-small": "fed_distill.models.bert:bert_small",
        "history-tower": "fed_distill.models.history_tower:HistoryTower",
        "labels-file": "fed_distill.models.labels_file:LabelsFile",
        "meta-learner": "fed_distill.models.meta_learner:meta_learner",
    },
)


def check_teacher(config: TeacherConfig) -> None:
    """Raise ConfigError if a teacher is neither built in, nor an import path, nor a folder, nor a model of the Hugging
    Face hub that is in its cache or may be downloaded (option ``download``); the network is not used.
    """
    name = config.model
    if name in TEACHERS or Path(name).exists() or ":" in name:
        return
    near = difflib.get_close_matches(name, TEACHERS, n=1)
    if not near and (config.options.get("download") or _is_cached(name)):
        return
    meant = f"did you mean {near[0]}?" if near else f"built in: {', '.join(TEACHERS)}."
    raise ConfigError(
        f"unknown teacher {name!r}: it is neither built in nor a folder, and the Hugging Face cache does not have it; "
        f"{meant} A folder is named by its path, the id of a model on the hub needs teacher.options.download = true, "
        "and a custom teacher is named by import path: my_package.my_module:MyName"
    )


def _is_cached(name: str) -> bool:
    """Whether the cache of the Hugging Face hub has a model."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        return isinstance(try_to_load_from_cache(name, "config.json"), str)
    except HFValidationError:  # no id of a model, such as a path that does not exist
        return False
