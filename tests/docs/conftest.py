"""The repository's Markdown, with the pages that the documentation's build generates."""

from pathlib import Path

import pytest

from docs.hooks.site import generated

ROOT = Path(__file__).parents[2]
FOLDERS = ("", "clients", "docs", "docs/*", "experiments/benchmarks", "server")


@pytest.fixture(scope="session")
def made() -> dict[str, str]:
    """Generated pages by path below ``docs/``."""
    return generated()


@pytest.fixture(scope="session")
def pages(made) -> dict[str, str]:
    """All pages by path in the repository."""
    found = {path for folder in FOLDERS for path in ROOT.glob(f"{folder}/*.md" if folder else "*.md")}
    written = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in found}
    return written | {f"docs/{path}": text for path, text in made.items()}
