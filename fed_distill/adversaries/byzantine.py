"""Selection of the Byzantine merchants from the run's seed, identical at the server and the sites of a simulation."""

from collections.abc import Sequence

from fed_distill import seeds
from fed_distill.config import Experiment
from fed_distill.errors import ConfigError


def byzantine_merchants(experiment: Experiment, merchants: Sequence[str], seed: int) -> frozenset[str]:
    """Return the Byzantine merchants of a federation, for all its rounds; at least one if ``byzantine.fraction`` is
    positive.

    :raises ConfigError: no honest merchant remains
    """
    fraction = experiment.byzantine.fraction
    if not fraction:
        return frozenset()
    names = sorted(merchants)
    size = max(1, round(fraction * len(names)))
    if size >= len(names):
        raise ConfigError(
            f"byzantine.fraction = {fraction:g} leaves no honest merchant of {len(names)}: decrease it, or use data "
            "with more merchants"
        )
    chosen = seeds.numpy_stream(seed, "byzantine merchants").choice(len(names), size, replace=False)
    return frozenset(names[place] for place in chosen)
