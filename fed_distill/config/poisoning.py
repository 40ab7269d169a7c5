"""Merchants that lie, in simulations of an attack."""

from typing import Any

from pydantic import Field

from fed_distill.config.tables import ConfigTable, Share


class PoisoningConfig(ConfigTable):
    """Merchants that lie in every federation, for simulations only; controls are never poisoned."""

    share: Share = Field(0.0, description="share of the merchants that lie, drawn by the seed; 0 for nobody")
    attack: str = Field("label-flip", description="label-flip, sign-flip or scaled, or import path of an own one")
    options: dict[str, Any] = Field(default_factory=dict, description="the attack's own options")
