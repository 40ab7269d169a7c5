"""The page of parts that are chosen by name, as ``fed-distill methods``, ``models`` and ``data list`` print them."""

from docs.hooks.markdown import code, prose, table
from fed_distill.adversaries import ATTACKS
from fed_distill.aggregation import AGGREGATORS
from fed_distill.cli.listing import option_rows
from fed_distill.config.controls import MEANINGS
from fed_distill.data import DATASETS
from fed_distill.methods import METHODS
from fed_distill.models import STUDENTS, TEACHERS
from fed_distill.registry import Registry
from fed_distill.transport.coding import SOFT_LABEL_STAGES, UPDATE_STAGES

SECTIONS: tuple[tuple[str, str, Registry], ...] = (
    ("Methods", "federation.method", METHODS),
    ("Aggregators", "federation.aggregator", AGGREGATORS),
    ("Codec stages for updates", "transport.weights", UPDATE_STAGES),
    ("Codec stages for soft labels", "transport.soft_labels", SOFT_LABEL_STAGES),
    ("Attacks of Byzantine merchants", "byzantine.attack", ATTACKS),
    ("Teachers", "teacher.model", TEACHERS),
    ("Students", "student.model", STUDENTS),
    ("Datasets", "data.dataset", DATASETS),
)
"""Title, the key that chooses, and the parts."""
_INTRODUCTION = """# Methods, models, datasets

Parts that are chosen by name, with their options and defaults. Options are set in `options` beside the key, for example
`federation.options = { proxy_steps = 4 }`. `fed-distill methods`, `models` and `data list` print the same.
[Parts of your own](../how-to/extending.md) are named by import path.
"""


def page() -> str:
    """Return the page of all parts."""
    sections = "\n".join(_section(*one) for one in SECTIONS)
    return f"{_INTRODUCTION}\n{sections}\n{_controls()}"


def _section(title: str, key: str, registry: Registry) -> str:
    rows = [option_rows(registry, name) for name in registry]
    shown = [
        (code(name), "<br>".join(map(code, filter(None, options.split("\n")))), prose(text))
        for name, options, text in rows
    ]
    return (
        f"## {title}\n\nChosen by [`{key}`](experiment.md#{key}).\n\n{table(('name', 'options', 'description'), shown)}"
    )


def _controls() -> str:
    rows = [(code(name), prose(meaning)) for name, meaning in MEANINGS.items()]
    return f"## Controls\n\nListed in [`controls`](experiment.md#controls).\n\n{table(('name', 'description'), rows)}"
