"""Names of the headline metrics of a study's cells, for people."""

import pandas as pd

from fed_distill.reporting.wording import METRIC_NAMES


def metric_names(combinations: pd.DataFrame) -> list[str]:
    """Return the names of the headline metrics of finished combinations; studies over tasks have several."""
    found = dict.fromkeys(str(name) for name in combinations["run.headline"] if isinstance(name, str))
    return [METRIC_NAMES.get(name, name) for name in found]


def metric_name(combinations: pd.DataFrame) -> str:
    """Return the name of the headline metric, or ``score`` if there are several or none."""
    names = metric_names(combinations)
    return names[0] if len(names) == 1 else "score"
