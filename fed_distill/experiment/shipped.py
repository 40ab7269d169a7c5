"""The experiments that the package contains: TOML files of studies, tunings and single runs.

A wheel has them in ``fed_distill/shipped``, where the build copies them; a checkout has them in ``experiments/``.
"""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import fed_distill
from fed_distill.config.toml import read_toml
from fed_distill.errors import ConfigError
from fed_distill.storage.files import write_atomic

_COMMANDS = {"search": "tune", "axis": "study", "extends": "study", "base": "study"}
"""Command by the first of these keys that a file has; ``run`` without any."""


@dataclass(frozen=True)
class Shipped:
    """One file. command: what runs it (``run``, ``study``, ``tune``). summary: its title, or its first sentence."""

    path: Path
    command: str
    summary: str

    @property
    def name(self) -> str:
        """Name of the file without its ending."""
        return self.path.stem

    def needs(self) -> list[Path]:
        """Return the files beside it that it is based on."""
        tables = read_toml(self.path, "experiment")
        base = tables.get("base")
        named = [tables.get("extends"), base.get("file") if isinstance(base, dict) else base]
        direct = [self.path.with_name(name) for name in named if isinstance(name, str)]
        return [*direct, *(path for one in direct for path in _described(one).needs())]


def folder() -> Path:
    """Return the folder of the files; raise ConfigError if the installation has none."""
    package = Path(fed_distill.__file__).parent
    for found in (package / "shipped", package.parent / "experiments"):
        if found.is_dir() and any(found.glob("*.toml")):
            return found
    raise ConfigError(f"{package} has no experiments: install the package again, from its wheel or its repository")


def experiments() -> list[Shipped]:
    """Return all files, by name."""
    return [_described(path) for path in sorted(folder().glob("*.toml"))]


def find(name: str) -> Shipped:
    """Return a file by its name, with or without its ending; raise ConfigError, with the nearest ones, if it is
    unknown."""
    known = {one.name: one for one in experiments()}
    found = known.get(name.removesuffix(".toml"))
    if found is None:
        near = difflib.get_close_matches(name, known, n=3)
        meant = f"did you mean {', '.join(near)}?" if near else "`fed-distill experiments ls` lists them"
        raise ConfigError(f"there is no experiment {name!r}; {meant}")
    return found


def copy(found: Shipped, target: Path, force: bool = False) -> list[Path]:
    """Copy a file, and the files that it is based on, into a folder; return their paths there.

    :param force: replace files that exist
    :raises ConfigError: one exists, and is not to be replaced; nothing is copied then
    """
    sources = list(dict.fromkeys([found.path, *found.needs()]))
    targets = [target / source.name for source in sources]
    there = [path for path in targets if path.exists()]
    if there and not force:
        raise ConfigError(f"{there[0]} exists: replace it with --force, or copy to another folder with --to")
    target.mkdir(parents=True, exist_ok=True)
    for source, path in zip(sources, targets, strict=True):
        write_atomic(path, source.read_bytes())
    return targets


def _described(path: Path) -> Shipped:
    tables = read_toml(path, "experiment")
    command = next((command for header, command in _COMMANDS.items() if header in tables), "run")
    return Shipped(path, command, str(tables.get("title") or _first_sentence(path)))


def _first_sentence(path: Path) -> str:
    """Return the first sentence of the comment at the top of a file."""
    text = " ".join(_comment(path))
    return text.partition(". ")[0].rstrip(".") if text else ""


def _comment(path: Path) -> Iterator[str]:
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            return
        yield line.lstrip("# ")
