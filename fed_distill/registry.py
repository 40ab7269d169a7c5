"""Registries: built-in parts by short name, custom parts by import path ``package.module:Attribute``.

A registry contains import paths instead of objects, so that listing the methods does not import torch.
"""

import difflib
import importlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from fed_distill.errors import ConfigError, NotAllowed
from fed_distill.validation import described

_allowed: frozenset[str] | None = None
_narrowed: ContextVar[tuple[frozenset[str], str] | None] = ContextVar("narrowed", default=None)
"""Import paths allowed by ``only_imports``, and what lists them."""


def allow_imports(paths: Iterable[str] | None) -> None:
    """Restrict imports by name to built-in parts and ``paths``, and exclude the working folder from the search.

    Required in a process that receives names from others: a site answers requests that name methods and students.

    :param paths: allowed import paths; None (the initial state) for no restriction
    """
    global _allowed
    _allowed = None if paths is None else frozenset(paths)


@contextmanager
def only_imports(paths: Iterable[str], where: str) -> Iterator[None]:
    """Restrict imports by name in a block as ``allow_imports`` does, besides its restriction.

    For names in files of others: a student's folder names classes.

    :param paths: allowed import paths
    :param where: what lists them, for error messages
    """
    token = _narrowed.set((frozenset(paths), where))
    try:
        yield
    finally:
        _narrowed.reset(token)


class Registry(Mapping[str, str]):
    """Import paths of the built-in parts of one kind, by name."""

    def __init__(
        self,
        kind: str,
        entries: Mapping[str, str],
        built_in: Iterable[str] = (),
        renamed: Mapping[str, str] | None = None,
    ) -> None:
        """Create a registry.

        :param kind: kind of part, for error messages
        :param entries: import path of each name
        :param built_in: import paths that are built in and have no short name
        :param renamed: current name of each former name, for error messages
        """
        self.kind = kind
        self._renamed = dict(renamed or {})
        self._entries = dict(entries)
        self._built_in = frozenset([*self._entries.values(), *built_in])

    def __getitem__(self, name: str) -> str:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def check(self, name: str) -> None:
        """Raise ConfigError if ``name`` is unknown or was renamed; import paths are accepted, and not followed."""
        if name in self._renamed:
            raise ConfigError(f"{self.kind} {name!r} was renamed: use {self._renamed[name]!r}")
        if ":" not in self._entries.get(name, name):
            near = difflib.get_close_matches(name, self._entries, n=3) or sorted(self._entries)
            raise ConfigError(
                f"unknown {self.kind} {name!r}; did you mean {', '.join(near)}? "
                f"A custom {self.kind} is named by import path: my_package.my_module:MyName"
            )

    def resolve(self, name: str) -> Any:
        """Import and return the object called ``name``.

        :param name: built-in name or import path
        :raises ConfigError: the name is unknown or was renamed, or the import fails
        :raises NotAllowed: the import path is not allowed (``allow_imports``, ``only_imports``)
        """
        self.check(name)
        path = self._entries.get(name, name)
        rule = None if _allowed is None else (_allowed, "rule imports")
        for allowed, where in filter(None, (rule, _narrowed.get())):
            if path not in self._built_in | allowed:
                raise NotAllowed(f"{where}: {self.kind} {name!r} is neither built in nor listed there")
        module_name, _, attribute = path.partition(":")
        try:
            module = _import(module_name)
        except ImportError as error:
            raise ConfigError(f"cannot import {self.kind} {name!r}: {error}") from error
        except Exception as error:  # a user's module can fail in any way while it is imported
            raise ConfigError(f"cannot import {self.kind} {name!r}: {type(error).__name__}: {error}") from error
        try:
            return getattr(module, attribute)
        except AttributeError:
            raise ConfigError(f"{module_name} has no {attribute!r} (required as {self.kind})") from None

    def build(self, name: str, options: Mapping[str, Any], **given: Any) -> Any:
        """Build the dataclass called ``name`` from ``options``, validated against its fields and their types.

        :param name: built-in name or import path
        :param options: options of the user
        :param given: fields set by the program; they are not options, so a user must not set them
        :raises ConfigError: the name or an option is invalid
        """
        factory = self.resolve(name)
        if not is_dataclass(factory):
            raise ConfigError(f"{self.kind} {name!r} must be a dataclass, so that its options can be checked")
        known = {field.name for field in fields(factory) if field.init} - set(given)
        unknown = sorted(set(options) - known)
        if unknown:
            raise ConfigError(
                f"{self.kind} {name!r} has no option {unknown[0]!r}; "
                + (f"it has: {', '.join(sorted(known))}" if known else "it has none")
            )
        try:
            return TypeAdapter(factory).validate_python({**options, **given})
        except ValidationError as error:
            first = error.errors()[0]
            where = "".join(f", option {part}" for part in first["loc"][:1])
            raise ConfigError(described(f"{self.kind} {name!r}{where}", first)) from error


def _import(module_name: str) -> Any:
    """Import a module, also from the working folder unless imports are restricted."""
    here = str(Path.cwd())
    if _allowed is not None or _narrowed.get() is not None or here in sys.path or "" in sys.path:
        return importlib.import_module(module_name)
    sys.path.append(here)
    try:
        return importlib.import_module(module_name)
    finally:
        sys.path.remove(here)
