"""Control variates of SCAFFOLD (Karimireddy et al., ICML 2020): the global one in the downlink."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

from fed_distill.models.weights import PartialWeights, Weights, norm_of, times
from fed_distill.payloads.base import Context, Payload, Records, Room
from fed_distill.payloads.partial import check_shapes, check_weights


@dataclass(frozen=True)
class ControlVariate(Payload):
    """A control variate, or a change of one.

    :param arrays: arrays by trained weight, with its shape
    """

    arrays: Weights
    name: ClassVar[str] = "control_variate"
    records: ClassVar[tuple[str, ...]] = ("control_variate",)
    disclosure: ClassVar[str] = "change of its mean gradient since it last took part"
    covered: ClassVar[str | None] = "computed from weights trained with DP-SGD, at no further cost"

    def to_records(self) -> Records:
        """Return one record of arrays."""
        return {"control_variate": self.arrays}

    @classmethod
    def from_records(cls, records: Records, numbers: Mapping[str, int]) -> Self:
        """Inverse of ``to_records``."""
        return cls(records["control_variate"])

    @classmethod
    def room(cls, context: Context) -> Room:
        """Return room for the global student."""
        return {"control_variate": {name: value.nbytes for name, value in context.weights.items()}}

    def check_shape(self, context: Context) -> None:
        """Check for names, shapes and types of weights."""
        check_shapes(PartialWeights(self.arrays), context.weights)

    def validate(self, context: Context) -> None:
        """Check shapes, and that all values are finite."""
        check_weights(PartialWeights(self.arrays), context.weights)

    def scaled(self, factor: float, context: Context) -> Self:
        """Return it multiplied by ``factor``."""
        return type(self)(times(self.arrays, factor))

    def norm(self) -> float:
        """Return the norm over all arrays."""
        return norm_of(self.arrays.values())
