"""The Flower app bundle (FAB) that server and sites exchange; it contains no code.

Flower sends each run's app from the server to the sites, and a SuperNode imports what it receives. This bundle contains
only the names of the two apps in `COMPONENTS`, which every machine imports from its own installed package, and the hash
of that package's code. Equal packages give identical bundles, so that a site accepts exactly one bundle and rejects all
others without parsing them.
"""

import hashlib
import io
import zipfile
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import tomli_w
from flwr.cli.build import build_fab_from_files, write_to_zip

from fed_distill.config import Experiment

COMPONENTS = {"serverapp": "fed_distill.deploy.server_app:app", "clientapp": "fed_distill.merchant.app:app"}
"""The Flower apps of the installed package."""
PACKAGE = "fed_distill"
"""The installed top-level package."""


@cache
def bundle() -> bytes:
    """Build the bundle of the installed package."""
    defaults = Experiment(name="experiment").to_run_config()
    described = {
        "project": {
            "name": "fed-distill",
            "version": version("fed-distill"),
            "description": f"runs the installed package; SHA-256 of its code: {code_hash()}",
        },
        "tool": {
            "flwr": {
                "app": {
                    "publisher": "fed-distill",
                    "components": COMPONENTS,
                    "config": defaults,  # Flower rejects other keys in a run config
                }
            }
        },
    }
    built, _ = build_fab_from_files({"pyproject.toml": tomli_w.dumps(described).encode()})
    return _stored(built)


def bundle_hash() -> str:
    """Return the SHA-256 of ``bundle()`` in hex: the value of ``app`` in a site's ``site.toml``."""
    return hashlib.sha256(bundle()).hexdigest()


def code_hash() -> str:
    """Return the SHA-256 in hex of the names and contents of all modules of the installed package."""
    digest = hashlib.sha256()
    spec = find_spec(PACKAGE)
    assert spec is not None and spec.submodule_search_locations is not None
    (root,) = map(Path, spec.submodule_search_locations)
    for name, path in sorted((path.relative_to(root).as_posix(), path) for path in root.rglob("*.py")):
        digest.update(f"{PACKAGE}/{name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def _stored(built: bytes) -> bytes:
    """Return the archive without compression, which would depend on the machine's zlib."""
    stored = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(built)) as source, zipfile.ZipFile(stored, "w", zipfile.ZIP_STORED) as target:
        for entry in source.infolist():
            write_to_zip(target, entry.filename, source.read(entry))
    return stored.getvalue()
