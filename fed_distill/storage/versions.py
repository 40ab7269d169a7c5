"""Which versions of what made a run: the first thing to look at when two runs differ."""

import platform
from importlib.metadata import PackageNotFoundError, version

CACHE_VERSION = 1
"""Part of the key of the server's cached students. Increase it with any change that gives other weights for equal
settings and versions: the golden runs (`tests/e2e/test_golden.py`) show such a change."""
CHECKPOINT_LAYOUT = 2
"""How a ``checkpoint`` folder is laid out. Increase it with any change by which a file of an earlier version would
be missed or misread: such a run is refused, not resumed."""
PACKAGES = ("torch", "transformers", "flwr")


def versions() -> dict[str, str]:
    """Versions by name: fed-distill, python, then the packages whose release can change a number."""
    return {
        "fed-distill": _version("fed-distill"),
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
