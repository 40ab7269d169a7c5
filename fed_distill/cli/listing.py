"""What a registry offers, read from the things themselves: their options and the first sentence about them."""

import inspect
import sys

from fed_distill.registry import Registry

_PROGRAM_GIVEN = {"classes", "pair", "teacher", "max_length"}


def option_rows(registry: Registry, name: str) -> tuple[str, str, str]:
    """Name, options with their defaults, and the first sentence of what ``name`` is."""
    thing = registry.resolve(name)
    options = [
        f"{key}={parameter.default!r}"
        for key, parameter in inspect.signature(thing).parameters.items()
        if key not in _PROGRAM_GIVEN and parameter.default is not parameter.empty
    ]
    return name, "\n".join(options), _first_sentence(thing)


def _first_sentence(thing: object) -> str:
    text = inspect.getdoc(thing) or ""
    if registry_text := _module_sentence(thing):
        text = registry_text if ":" in text.partition(".")[0] or not text else text
    return " ".join(text.split()).partition(". ")[0].rstrip(".")


def _module_sentence(thing: object) -> str:
    module = sys.modules.get(getattr(thing, "__module__", ""), None)
    return inspect.getdoc(module) or ""
