"""Change the paths of an experiment: to absolute ones, for processes with another working folder, such as Flower's; or
to names without folders, for readers elsewhere."""

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args, get_type_hints

from pydantic import BaseModel

from fed_distill.config import Experiment, RuntimeConfig
from fed_distill.data.dataset import DATASETS
from fed_distill.data.hub_file import HUB
from fed_distill.models import STUDENTS, TEACHERS
from fed_distill.registry import Registry


def absolute(experiment: Experiment) -> Experiment:
    """Return ``experiment`` with every relative path made absolute, relative to this process's working folder.

    Paths are keys of that type, ``Path`` options of a dataset, teacher or student, and names of models that are an
    existing file or folder. The default of ``runtime.folder`` stays relative: each process has its own.

    :raises ConfigError: an import path is invalid
    """
    return _with_paths(experiment, _absolute)


def only_names(experiment: Experiment) -> Experiment:
    """Return ``experiment`` with the last part of each path (see ``absolute``) in place of the path.

    :raises ConfigError: an import path is invalid
    """
    return _with_paths(experiment, lambda path: Path(path).name)


def _with_paths(experiment: Experiment, place: Callable[[Path | str], str]) -> Experiment:
    data, teacher, student = experiment.data, experiment.teacher, experiment.student
    options: dict[str, Any] = {
        "data.options": _options(DATASETS, data.dataset, data.options, place),
        "data.proxy_options": _options(DATASETS, data.proxy_dataset or data.dataset, data.proxy_options, place),
        "student.options": _options(STUDENTS, student.model, student.options, place),
        "teacher.options": _options(TEACHERS, teacher.model, teacher.options, place),
        "teacher.ensemble": [
            one.model_dump(exclude_none=True)
            | ({} if one.model is None else {"model": _model(one.model, place)})
            | (
                {}
                if one.options is None
                else {"options": _options(TEACHERS, one.model or teacher.model, one.options, place)}
            )
            for one in teacher.ensemble
        ],
    }
    models = {
        "teacher.model": _model(teacher.model, place),
        "training.augmentation.back_translation": [
            _model(name, place) for name in experiment.training.augmentation.back_translation
        ],
    }
    places = {key: place(path) for key, path in _paths(experiment) if not _is_usual(key, path)}
    return experiment.with_changes({**options, **models, **places})


def _absolute(path: Path | str) -> str:
    return str(Path(path).absolute())


def _is_usual(key: str, path: Path) -> bool:
    return key == "runtime.folder" and path == RuntimeConfig().folder


def _paths(table: BaseModel, prefix: str = "") -> Iterator[tuple[str, Path]]:
    """Yield the dotted keys of paths, with their values."""
    for key in type(table).model_fields:
        value = getattr(table, key)
        if isinstance(value, BaseModel):
            yield from _paths(value, f"{prefix}{key}.")
        elif isinstance(value, Path):
            yield prefix + key, value


def _model(name: str, place: Callable[[Path | str], str]) -> str:
    """Return a model's name; for a file or folder its changed path. Built-in names take precedence over files."""
    return place(name) if name not in TEACHERS and Path(name).exists() else name


def _options(
    registry: Registry, name: str, options: Mapping[str, Any], place: Callable[[Path | str], str]
) -> dict[str, Any]:
    """Return ``options`` of the part ``name`` with its ``Path`` options changed."""
    if not options or (name not in registry and ":" not in name):  # a pretrained model's folder or hub id
        return dict(options)
    part = registry.resolve(name)
    taken = part if dataclasses.is_dataclass(part) or not inspect.isclass(part) else part.__init__
    paths = {key for key, hint in get_type_hints(taken).items() if hint is Path or Path in get_args(hint)}
    return {key: place(value) if key in paths and _is_path(value) else value for key, value in options.items()}


def _is_path(value: Any) -> bool:
    """Whether an option that may be a path is one, and not the address of a file on the Hugging Face hub."""
    return isinstance(value, str) and not value.startswith(HUB)
