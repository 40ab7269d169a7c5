"""Which versions of what made a run: the first thing to look at when two runs differ."""

import platform
from importlib.metadata import PackageNotFoundError, version

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
