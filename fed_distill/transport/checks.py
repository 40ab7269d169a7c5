"""What ``[transport]`` must find in an experiment."""

from collections.abc import Collection, Mapping
from typing import Protocol

from fed_distill.config import Experiment
from fed_distill.errors import ConfigError
from fed_distill.payloads.base import Payload
from fed_distill.payloads.selected_soft_labels import SelectedSoftLabels
from fed_distill.payloads.soft_labels import SoftLabels
from fed_distill.transport.coding.codec import CODED, Codec
from fed_distill.transport.messages import Kinds


class Carries(Protocol):
    """Of a method, what it sends and receives."""

    @property
    def sends(self) -> Kinds:
        """Kinds of payloads in its uplinks."""

    @property
    def receives(self) -> Kinds:
        """Kinds of payloads in its downlinks."""


def check(experiment: Experiment, methods: Mapping[str, Carries]) -> None:
    """ConfigError for chains that would code nothing, of a part that no federation on those terms sends or is sent, and
    for a cache of soft labels where one sends those of some proxy examples only.

    :param methods: of the experiment's federations, by title.
    """
    sends: dict[str, set[type[Payload]]] = {}
    receives: dict[str, set[type[Payload]]] = {}
    for federation in experiment.federations():
        key = "[transport]" if federation.transport is None else f"the transport of {federation.title}"
        Codec.of(experiment.transport_of(federation.title))
        method = methods[federation.title]
        sends.setdefault(key, set()).update(method.sends)
        receives.setdefault(key, set()).update(method.receives)
    tables = {f"the transport of {one.title}": one.transport for one in experiment.federations() if one.transport}
    for key, config in {"[transport]": experiment.transport, **tables}.items():
        sent = sends.get(key, set())
        for part, kinds in CODED.items():
            if getattr(config, part) and not sent.intersection(kinds):
                raise ConfigError(f"{key} codes {part}, which no method on its terms sends: drop {part} from it")
            if getattr(config, f"downlink_{part}") and not receives.get(key, set()).intersection(kinds):
                raise ConfigError(
                    f"{key} codes {part} on their way to merchants, where no method on its terms sends any: drop "
                    f"downlink_{part} from it"
                )
        if config.downlink_soft_labels and SelectedSoftLabels in sent:
            raise ConfigError(f"{key} codes soft labels that merchants select by as the server does: drop it")
        if config.soft_label_cache is not None and (lacking := _uncacheable(sent)):
            raise ConfigError(f"{key} caches soft labels, {lacking}: drop soft_label_cache from it")


def _uncacheable(sent: Collection[type[Payload]]) -> str:
    """Why soft labels cannot be cached where merchants send these payloads; empty if they can."""
    if SelectedSoftLabels in sent:
        return "and a method on its terms sends those of some proxy examples only"
    return "" if SoftLabels in sent else "which no method on its terms sends"
