"""List the parts of a registry with their options and the first sentence of their docstrings."""

import dataclasses
import inspect
import re
import sys
from collections.abc import Iterator

from fed_distill.registry import Registry

_PROGRAM_GIVEN = {"classes", "pair", "teacher", "texts", "max_length", "task"}


def option_rows(registry: Registry, name: str) -> tuple[str, str, str]:
    """Return name, options with their defaults, and the first sentence about ``name``."""
    thing = registry.resolve(name)
    return name, "\n".join(_options(thing)), _first_sentence(thing)


def description(registry: Registry, name: str) -> str:
    """Return what the docstrings of a part and of its module say, which name its paper, and its options with their
    defaults.

    :raises ConfigError: the registry has no such part
    """
    thing = registry.resolve(name)
    module, own = inspect.getdoc(sys.modules[thing.__module__]) or "", inspect.getdoc(thing) or ""
    options = "\n".join(f"    {option}" for option in _options(thing))
    parts = [f"{registry.kind} {name}", module, "" if own in module else own, options and f"Options:\n{options}"]
    return "\n\n".join(part for part in parts if part).replace("``", "`")


def _options(thing: type) -> Iterator[str]:
    made = (
        {field.name: field.default_factory for field in dataclasses.fields(thing)}
        if dataclasses.is_dataclass(thing)
        else {}
    )
    for key, parameter in inspect.signature(thing).parameters.items():
        if key in _PROGRAM_GIVEN and not dataclasses.is_dataclass(thing):
            continue
        factory = made.get(key, dataclasses.MISSING)
        if factory is not dataclasses.MISSING:
            yield f"{key}={factory()!r}"
        elif parameter.default is parameter.empty:
            yield f"{key} (required)"
        else:
            yield f"{key}={parameter.default!r}"


def _first_sentence(thing: object) -> str:
    """Return the first sentence of its docstring, or of its module's if its own only explains options."""
    text = inspect.getdoc(thing) or ""
    if not text or re.match(r"[a-z]\w*(, [a-z]\w*)*: ", text):
        text = inspect.getdoc(sys.modules.get(getattr(thing, "__module__", ""))) or text
    return " ".join(text.split()).partition(". ")[0].rstrip(".").replace("``", "")
