"""Which merchants are Byzantine: drawn from the run's seed, so that server and sites of a simulation know the same."""

from collections.abc import Sequence

from fed_distill import seeds
from fed_distill.config import Experiment
from fed_distill.errors import ConfigError


def byzantine_merchants(experiment: Experiment, merchants: Sequence[str], seed: int) -> frozenset[str]:
    """The Byzantine ones of all ``merchants`` of a federation, at least one if any are to be; for all its rounds.

    Raises ConfigError if no honest merchant would be left.
    """
    fraction = experiment.byzantine.fraction
    if not fraction:
        return frozenset()
    names = sorted(merchants)
    size = max(1, round(fraction * len(names)))
    if size >= len(names):
        raise ConfigError(
            f"byzantine.fraction = {fraction:g} leaves no honest one of {len(names)} merchants: lower it, or give "
            "the data more merchants"
        )
    chosen = seeds.numpy_stream(seed, "byzantine merchants").choice(len(names), size, replace=False)
    return frozenset(names[place] for place in chosen)
