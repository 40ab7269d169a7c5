"""What an aggregator must find in an experiment."""

from fed_distill.aggregation import AGGREGATORS, SUBMODEL_AGGREGATORS
from fed_distill.config import Experiment, FederationConfig
from fed_distill.errors import ConfigError


def check(experiment: Experiment, federation: FederationConfig, averages: bool) -> None:
    """ConfigError for an aggregator that there is not, or that this federation cannot use. ``averages``: whether its
    method has anything averaged at all."""
    AGGREGATORS.build(federation.aggregator, federation.aggregator_options)
    if not averages and (federation.aggregator != "fedavg" or federation.aggregator_options):
        raise ConfigError(
            f"method {federation.method} sends no weights that aggregator {federation.aggregator} could merge: set "
            "federation.aggregator = 'fedavg', without options"
        )
    if federation.aggregator in SUBMODEL_AGGREGATORS and not experiment.training.submodel:
        raise ConfigError(f"aggregator {federation.aggregator} averages submodels: it needs training.submodel = true")
