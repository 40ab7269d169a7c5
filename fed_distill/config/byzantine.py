"""Configuration of Byzantine merchants in simulations."""

from typing import Any

from pydantic import Field

from fed_distill.config.tables import ConfigTable, Share


class ByzantineConfig(ConfigTable):
    """Merchants that deviate from the protocol in every federation, for simulations only; controls have none."""

    fraction: Share = Field(
        0.0, description="fraction of the merchants that are Byzantine, drawn by the seed; 0 for none"
    )
    attack: str = Field("label-flip", description="label-flip, sign-flip or scaled, or import path of a custom one")
    options: dict[str, Any] = Field(default_factory=dict, description="options of the attack")
