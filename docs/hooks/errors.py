"""The page of exceptions, from their docstrings."""

import inspect

from docs.hooks.markdown import code, prose, table
from fed_distill.errors import FedDistillError

_INTRODUCTION = """# Errors

Every error that fed-distill raises on purpose is a `fed_distill.errors.FedDistillError`. Its message says what is
wrong, where, and what to change. The command line prints it in one line and exits with code 2.
"""


def page() -> str:
    """Return the page of all exceptions."""
    rows = [(code(one.__name__), *meaning_and_remedy(one)) for one in family(FedDistillError)]
    return f"{_INTRODUCTION}\n{table(('class', 'meaning', 'remedy'), rows)}"


def family(base: type[FedDistillError]) -> list[type[FedDistillError]]:
    """Return the subclasses of ``base`` in its module, each followed by its own; those elsewhere are details of it."""
    own = [one for one in base.__subclasses__() if one.__module__ == base.__module__]
    return [found for one in own for found in (one, *family(one))]


def meaning_and_remedy(error: type[FedDistillError]) -> tuple[str, str]:
    """Return the two paragraphs of an exception's docstring."""
    meaning, _, remedy = inspect.cleandoc(error.__doc__ or "").partition("\n\nRemedy: ")
    return prose(meaning), prose(remedy)
