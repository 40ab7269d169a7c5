"""Versions of the software that produced a run."""

import platform
from importlib.metadata import PackageNotFoundError, version

CACHE_VERSION = 2
"""Part of the cache keys of teachers and of the server's students. Increase it with any change that alters the weights
for equal settings and versions: the golden runs (`tests/e2e/test_golden.py`) detect such a change."""
CHECKPOINT_LAYOUT = 5
"""Version of the layout of a ``checkpoint`` folder. Increase it with any change by which a file of an earlier version
would be missed or misread: such a run is rejected instead of resumed."""
PACKAGES = ("torch", "transformers", "flwr")


def versions() -> dict[str, str]:
    """Return versions by name: fed-distill, Python and the packages that influence numerical results."""
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
