"""Pages of configuration files: each key with type, default, bounds and meaning."""

from pydantic import BaseModel

from docs.hooks.markdown import code, prose, table
from fed_distill.config import Experiment
from fed_distill.config.privacy import UNITS
from fed_distill.config.reference import OWN_UNIT, KeyDescription, tables
from fed_distill.merchant.manifest import Manifest
from fed_distill.serving.service_config import ServeConfig
from fed_distill.sweeps.grid import Study
from fed_distill.sweeps.space import Tuning

_EXPERIMENT = """# Experiment files

Keys of the file that `fed-distill run` reads. Every key is optional; an unknown key is an error that names the most
similar one. `--set federation.rounds=3` changes a key on the command line. `fed-distill config FILE` prints a file with
all its defaults.

The default `none` means that the key is not set. A path is relative to the working folder.
"""
_STUDIES = """# Study and tune files

Keys of the files that `fed-distill study` and `fed-distill tune` read. `base` is the experiment that is varied: a table
with the keys of an [experiment file](experiment.md).
"""
_SITE = """# Site settings

Keys of `site.toml`, which a site's staff writes and only the site reads. [Run across sites](../how-to/sites.md) has the
steps. `[limits.merchants.NAME]` has the keys of `[limits.default]`, for one merchant.
"""
_SERVE = """# Service settings

Keys of `serve.toml`, which `fed-distill serve` reads. [Serving a student](../how-to/serving.md) describes the service.
"""


def experiment_page() -> str:
    """Return the page of experiment files."""
    return f"{_EXPERIMENT}\n{_sections(Experiment)}"


def studies_page() -> str:
    """Return the page of study and tune files."""
    studies, tuning = _sections(Study, "### ", "study"), _sections(Tuning, "### ", "tune")
    return f"{_STUDIES}\n## Studies\n\n{studies}\n## Tuning\n\n{tuning}"


def site_page() -> str:
    """Return the page of a site's settings."""
    return f"{_SITE}\n{_sections(Manifest)}"


def serve_page() -> str:
    """Return the page of the service's settings."""
    return f"{_SERVE}\n{_sections(ServeConfig)}"


def anchor(name: str, prefix: str = "") -> str:
    """Return the anchor of a key or table, which its page has once."""
    return f"{prefix}-{name}" if prefix else name


def _sections(root: type[BaseModel], level: str = "## ", prefix: str = "") -> str:
    parts = []
    anchored: set[str] = set()  # a list may have tables of several kinds, a key may depend on the privacy unit
    for one in tables(root):
        title = code(one.header) or "Top of the file"
        place = anchor(one.name or "top", prefix)
        parts.append(f"{level}{title}{'' if place in anchored else f' {{ #{place} }}'}\n\n{prose(one.description)}\n")
        anchored.add(place)
        rows = []
        for key in one.keys:
            place = anchor(key.name, prefix)
            rows.append(_row(key, "" if place in anchored else place))
            anchored.add(place)
        if rows:
            parts.append(table(("key", "meaning", "type", "default"), rows))
    return "\n".join(parts)


def _row(key: KeyDescription, place: str) -> tuple[str, str, str, str]:
    """Return a table's row; the key's name is a place to link to."""
    last = code(key.name.rpartition(".")[2])
    name = f'<span id="{place}">{last}</span>' if place else last
    kind = prose(key.type) + (f"; {_bounds(key.bounds)}" if key.bounds else "")
    return name, f"{prose(key.description)}{_units(key.units)}", kind, code(key.default)


def _units(units: tuple[str, ...]) -> str:
    """Return the privacy units that have a key, as an addition to its meaning."""
    if not units:
        return ""
    if len(units) == len(UNITS):  # those but `none`, and a custom one
        return " (every unit but `none`)"
    names = ["custom" if unit == OWN_UNIT else code(unit) for unit in units]
    return f" ({'unit' if len(names) == 1 else 'units'} {', '.join(names)})"


def _bounds(bounds: str) -> str:
    text, pattern, regex = bounds.partition("matches ")
    return f"{text}matches {code(regex)}" if pattern else text
