"""Check an aggregator's requirements on the experiment."""

from fed_distill.aggregation import AGGREGATORS, SUBMODEL_AGGREGATORS
from fed_distill.aggregation.base import HasMinimum
from fed_distill.config import Experiment, FederationConfig
from fed_distill.errors import ConfigError


def check(experiment: Experiment, federation: FederationConfig, averages: bool) -> None:
    """Raise ConfigError for an unknown aggregator, or one that the federation cannot use; ``averages``: whether the
    method aggregates weights."""
    AGGREGATORS.build(federation.aggregator, federation.aggregator_options)
    if not averages and (federation.aggregator != "fedavg" or federation.aggregator_options):
        raise ConfigError(
            f"aggregator {federation.aggregator} has no effect: method {federation.method} does not average weights. "
            "Set federation.aggregator = 'fedavg', without options"
        )
    if federation.aggregator in SUBMODEL_AGGREGATORS and not experiment.training.submodel:
        raise ConfigError(
            f"aggregator {federation.aggregator} averages submodels: it requires training.submodel = true"
        )


def least_merchants(federation: FederationConfig) -> int:
    """Return the minimum number of merchants in a round that the federation's aggregator can merge."""
    built = AGGREGATORS.build(federation.aggregator, federation.aggregator_options)
    return built.minimum() if isinstance(built, HasMinimum) else 1
