"""Check ``[transport]`` against the methods of an experiment."""

from collections.abc import Collection, Iterable, Mapping
from typing import Protocol

from fed_distill.config import Experiment
from fed_distill.errors import ConfigError
from fed_distill.payloads.base import Payload
from fed_distill.payloads.density_selected_soft_labels import DensitySelectedSoftLabels
from fed_distill.payloads.selected_soft_labels import SelectedSoftLabels
from fed_distill.payloads.soft_labels import SoftLabels
from fed_distill.transport.coding.codec import CODED, Codec
from fed_distill.transport.messages import Kinds


class Carries(Protocol):
    """The declarations of a method for transport."""

    @property
    def sends(self) -> Kinds:
        """Kinds of payloads in its uplinks."""

    @property
    def receives(self) -> Kinds:
        """Kinds of payloads in its downlinks."""


def check(experiment: Experiment, methods: Mapping[str, Carries]) -> None:
    """Check that all chains of ``[transport]`` have an effect.

    :param methods: methods of the experiment's federations, by title
    :raises ConfigError: a chain is for payloads that no federation with it sends or receives, or soft labels are cached
        although a method sends those of some proxy examples only
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
            if getattr(config, part) and not _any_of(sent, kinds):
                raise ConfigError(f"{key} compresses {part}, but none of its methods sends them: remove {part}")
            if getattr(config, f"downlink_{part}") and not _any_of(receives.get(key, set()), kinds):
                raise ConfigError(
                    f"{key} compresses {part} in downlinks, but none of its methods sends them there: remove "
                    f"downlink_{part}"
                )
        if config.downlink_soft_labels and sent & {SelectedSoftLabels, DensitySelectedSoftLabels}:
            raise ConfigError(
                f"downlink_soft_labels of {key} cannot be combined with methods that send `answered`: server and "
                "merchants must select by identical labels. Remove it"
            )
        if config.soft_label_cache is not None and (lacking := _uncacheable(sent)):
            raise ConfigError(f"{key} caches soft labels, {lacking}: remove soft_label_cache")


def _uncacheable(sent: Collection[type[Payload]]) -> str:
    """Return why soft labels cannot be cached if merchants send these payloads; empty if they can."""
    if _any_of(sent, (SelectedSoftLabels,)):
        return "but a method sends those of some proxy examples only"
    return "" if SoftLabels in sent else "but no method sends them"


def _any_of(payloads: Iterable[type[Payload]], kinds: Kinds) -> bool:
    """Whether one of the payloads is of one of the kinds, or of a subclass."""
    return any(issubclass(payload, kinds) for payload in payloads)
