"""Soft labels of the proxy examples that are most typical of a merchant's own data."""

from dataclasses import dataclass
from typing import ClassVar

from fed_distill.payloads.selected_soft_labels import SelectedSoftLabels


@dataclass(frozen=True)
class DensitySelectedSoftLabels(SelectedSoftLabels):
    """Selected soft labels whose selection depends on private texts after training, which no mechanism covers."""

    name: ClassVar[str] = "density_selected_soft_labels"
    disclosure: ClassVar[str] = (
        "its student's soft labels on some proxy examples, and which of these are most typical of its own texts, which "
        "reveals its assortment"
    )
    covered: ClassVar[str | None] = None
