"""Models by name: build a student or teacher from checked options, rebuild it from its settings, load it from a folder.

A registry entry is a TextModel class, or a function that returns a model with its own ``kind`` and ``settings``. The
arguments ``classes``, ``pair``, (for students) ``teacher`` and ``texts`` and (for teachers) ``max_length`` and ``task``
are set by the program; all others are the user's options, typed and with defaults.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import ConfigDict, ValidationError, create_model

from fed_distill import seeds
from fed_distill.config import TeacherConfig
from fed_distill.data.examples import Task
from fed_distill.errors import ConfigError, ModelError
from fed_distill.models.base import TextModel, read_model_files
from fed_distill.models.names import STUDENTS, TEACHERS
from fed_distill.models.weights import Weights
from fed_distill.registry import Registry
from fed_distill.seeds import Randomness
from fed_distill.validation import described

_ANY_PRETRAINED = "fed_distill.models.pretrained:pretrained"
_CAUSAL = "fed_distill.models.causal:causal"


def build_student(
    name: str,
    options: Mapping[str, Any],
    task: Task,
    teacher: TextModel | None = None,
    texts: Sequence[str] | None = None,
) -> TextModel:
    """Build the student called ``name``; its weights are drawn from torch's global state (see ``seeds.scope``).

    :param teacher: teacher for options that copy its weights, such as ``from_teacher`` of bert-mini
    :param texts: the server's texts, for options such as ``vocabulary`` that depend on them
    :raises ConfigError: unknown name or option, or a value of the wrong type
    """
    given = {"classes": len(task.classes), "pair": task.pair, "teacher": teacher, "texts": texts}
    return _build(STUDENTS, name, options, given)


def load_teacher(config: TeacherConfig, task: Task) -> TextModel:
    """Build the teacher of ``config`` before fine-tuning: a built-in one, an import path, or the folder or hub id of a
    Hugging Face model: with the option ``prompt`` a causal language model, else a sequence classifier.

    :raises ConfigError: an option is invalid
    :raises ModelError: its files are missing
    :raises DataError: a file of labels is missing or invalid
    """
    given = {"classes": len(task.classes), "pair": task.pair, "max_length": config.max_length, "task": task}
    name = _factory_of(config)
    return _build(TEACHERS, name, config.options, given if name == config.model else {**given, "path": config.model})


def is_zero_shot(config: TeacherConfig) -> bool:
    """Whether the teacher of ``config`` predicts the classes without fine-tuning; see ``TextModel.zero_shot``."""
    return bool(getattr(_type_of(config), "zero_shot", False))


def is_trainable(config: TeacherConfig) -> bool:
    """Whether the teacher of ``config`` can be fine-tuned; see ``TextModel.trainable``."""
    return bool(getattr(_type_of(config), "trainable", True))


def fits_itself(config: TeacherConfig) -> bool:
    """Whether the teacher of ``config`` is fitted by a procedure of its own; see ``FitsItself``."""
    kind = _type_of(config)
    return inspect.isclass(kind) and hasattr(kind, "fit")


def _factory_of(config: TeacherConfig) -> str:
    """Return the name or import path of what builds the teacher of ``config``."""
    if config.model in TEACHERS or (":" in config.model and not Path(config.model).exists()):
        return config.model
    return _CAUSAL if "prompt" in config.options else _ANY_PRETRAINED


def _type_of(config: TeacherConfig) -> Any:
    """Return the class of the teacher of ``config``, or None if its function does not declare it."""
    factory = TEACHERS.resolve(_factory_of(config))
    if inspect.isclass(factory) or not callable(factory):
        return factory
    return get_type_hints(factory).get("return")


MOST_CLASSES = 100_000
"""Maximum number of classes of a rebuilt model: configurations of transformers hold a name for each."""


def rebuild(kind: str, settings: Mapping[str, Any], randomness: Randomness = (0, "rebuild")) -> TextModel:
    """Build the model with ``TextModel.kind`` and ``settings`` and weights drawn from ``randomness``, to be trained or
    overwritten.

    :raises ModelError: ``kind`` is not a TextModel class, as stored names must not call anything else, or the settings
        are invalid
    """
    try:
        factory = STUDENTS.resolve(kind)
        if not (inspect.isclass(factory) and issubclass(factory, TextModel)):
            raise ModelError(f"{kind!r} is not the name of a TextModel class")
        if settings.get("classes", 0) > MOST_CLASSES:
            raise ModelError(f"{settings['classes']:,} classes are more than {MOST_CLASSES:,}")
        with seeds.scope(*randomness):
            model = factory(**settings)
    except ModelError:
        raise
    except Exception as error:  # settings from a file can fail in any way
        raise ModelError(f"cannot rebuild a model of kind {kind!r}: {error}") from error
    return _described(model, kind, settings)


def load_model(folder: Path) -> TextModel:
    """Load what ``TextModel.save`` wrote; raise ModelError with ``folder`` if it is missing or damaged."""
    kind, settings, weights = read_model_files(Path(folder))
    return with_weights(folder, kind, settings, weights)


def with_weights(folder: Path, kind: str, settings: Mapping[str, Any], weights: Weights) -> TextModel:
    """Build the model of ``read_model_files(folder)``; raise ModelError with ``folder`` if its parts do not fit."""
    try:
        model = rebuild(kind, settings)
        model.load_state_dict(weights)
    except (ModelError, RuntimeError) as error:
        raise ModelError(f"the weights in {folder} do not fit the model's settings: {error}") from error
    return model.eval()


def _build(registry: Registry, name: str, options: Mapping[str, Any], given: Mapping[str, Any]) -> TextModel:
    factory = registry.resolve(name)
    if not callable(factory):
        raise ConfigError(f"{registry.kind} {name!r} is neither a TextModel class nor a function that returns one")
    accepted = {key: value for key, value in given.items() if key in inspect.signature(factory).parameters}
    settings = {**accepted, **_checked(f"{registry.kind} {given.get('path', name)!r}", factory, options, set(given))}
    model = factory(**settings)
    if not isinstance(model, TextModel):
        raise ConfigError(f"{registry.kind} {name!r} is not a TextModel")
    if inspect.isclass(factory):
        return _described(model, name, settings)
    if not model.kind:
        raise ConfigError(
            f"{registry.kind} {name!r} is a function: its model must have a kind and settings that rebuild it"
        )
    return model


def _described(model: TextModel, kind: str, settings: Mapping[str, Any]) -> TextModel:
    model.kind = kind
    model.settings = {key: value for key, value in settings.items() if key not in ("teacher", "texts")}
    return model


def _checked(title: str, factory: Callable[..., Any], options: Mapping[str, Any], given: set[str]) -> dict[str, Any]:
    """Validate ``options`` against the factory's typed keyword arguments, and add defaults."""
    hints = get_type_hints(factory.__init__ if inspect.isclass(factory) else factory, include_extras=True)
    known: dict[str, Any] = {
        key: (hints.get(key, Any), ... if parameter.default is parameter.empty else parameter.default)
        for key, parameter in inspect.signature(factory).parameters.items()
        if key not in given and parameter.kind is not parameter.VAR_KEYWORD
    }
    unknown = sorted(set(options) - set(known))
    if unknown:
        listing = f"it has: {', '.join(sorted(known))}" if known else "it has none"
        raise ConfigError(f"{title} has no option {unknown[0]!r}; {listing}")
    try:
        form = create_model("Options", __config__=ConfigDict(protected_namespaces=()), **known)
        checked = form(**options)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(described(f"{title}, option {'.'.join(map(str, first['loc']))}", first)) from error
    return {key: getattr(checked, key) for key in known}
