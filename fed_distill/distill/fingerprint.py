"""Names for cached results: equal exactly when everything that the result depends on is equal."""

import hashlib
import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import fed_distill
from fed_distill.data.examples import Examples

_DIGITS = 32


def fingerprint(**parts: Any) -> str:
    """32 hexadecimal digits of the SHA-256 of JSON-ready ``parts``."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:_DIGITS]


def examples_fingerprint(examples: Examples) -> str:
    """Fingerprint of texts, pairs and labels, in order; merchants and groups do not count."""
    return fingerprint(texts=examples.texts, pairs=examples.pairs, labels=examples.labels.tolist())


def files_fingerprint(paths: Iterable[Path]) -> str:
    """Fingerprint of the files' names and contents."""
    return fingerprint(files=[(path.name, _digest(path)) for path in sorted(paths)])


@cache
def code_fingerprint() -> str:
    """Fingerprint of this program's own sources, for what a change of them may change while the version stays."""
    package = Path(fed_distill.__file__).parent
    sources = sorted([*package.rglob("*.py"), *(package.parent / "server").rglob("*.py")])
    return fingerprint(files=[(str(path.relative_to(package.parent)), _digest(path)) for path in sources])


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
