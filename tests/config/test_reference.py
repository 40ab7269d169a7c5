"""The descriptions of keys: complete, and equal to what the classes accept."""

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from fed_distill.config import Experiment
from fed_distill.config.keys import has_key
from fed_distill.config.privacy import UNITS
from fed_distill.config.reference import KeyDescription, keys, tables
from fed_distill.config.tables import ConfigTable
from fed_distill.errors import ConfigError


class Inner(ConfigTable):
    """An inner table."""

    undescribed: int = 3


class Small(ConfigTable):
    """A small file."""

    name: str = Field(description="a name")
    share: Annotated[float, Field(gt=0.0, le=1.0)] | None = Field(None, description="a share")
    kind: Literal["one", "two"] = Field("one", description="a kind")
    sizes: dict[str, float] = Field(default_factory=lambda: {"a": 1.5}, description="sizes")
    place: Path = Field(Path("there"), description="a place")
    inner: Inner = Field(default_factory=Inner)
    more: list[Inner] = Field(default_factory=list, description="more tables")


def test_a_key_has_type_default_and_bounds_in_words() -> None:
    assert keys(Small) == [
        KeyDescription("name", "", "string", "required", "", "a name"),
        KeyDescription("share", "", "number", "none", "greater than 0, at most 1", "a share"),
        KeyDescription("kind", "", 'one of "one", "two"', '"one"', "", "a kind"),
        KeyDescription("sizes", "", "table of numbers", "{ a = 1.5 }", "", "sizes"),
        KeyDescription("place", "", "path", '"there"', "", "a place"),
        KeyDescription("inner.undescribed", "[inner]", "whole number", "3", "", ""),
        KeyDescription("more.undescribed", "[[more]]", "whole number", "3", "", ""),
    ]


def undescribed(root: type[ConfigTable]) -> list[str]:
    return [key.name for key in keys(root) if not key.description.strip()]


def test_a_key_without_description_is_found() -> None:
    assert undescribed(Small) == ["inner.undescribed", "more.undescribed"]


def test_every_key_and_table_has_a_description() -> None:
    assert undescribed(Experiment) == []
    assert [table.header for table in tables() if not table.description] == []


def _leaves(table: Any, prefix: str = "") -> set[str]:
    """The dotted keys of an experiment that was validated; tables that are values (options) are leaves."""
    if not isinstance(table, ConfigTable):
        return {prefix}
    return {
        leaf
        for field in type(table).model_fields
        for leaf in _leaves(getattr(table, field), f"{prefix}.{field}" if prefix else field)
    }


def test_every_key_of_an_experiment_is_described() -> None:
    told = {key.name for key in keys()}
    lists = {"teacher.ensemble", "distill.assistants", "federation.transport"}
    for unit in UNITS:
        needs = {"none": {}, "label": {"epsilon": 1.0, "texts_public": True}}.get(unit, {"epsilon": 1.0})
        experiment = Experiment.parse({"privacy": {"unit": unit, **needs}})
        assert _leaves(experiment) - lists <= told, unit
    assert all(any(name.startswith(f"{one}.") for name in told) for one in lists)


def test_every_described_key_exists() -> None:
    in_lists = ("teacher.ensemble.", "distill.assistants.")
    assert [key.name for key in keys() if not key.name.startswith(in_lists) and not has_key(key.name)] == []


@pytest.mark.parametrize("unit", UNITS)
def test_units_have_the_keys_that_are_listed_for_them(unit: str) -> None:
    """A key that is listed for other units only is rejected; one of this unit gets another problem or none."""
    needs: dict[str, Any] = {"none": {}, "label": {"epsilon": 1.0}}.get(unit, {"noise_multiplier": 1.0})
    own = {key.name for key in keys() if unit in key.units}
    for key in (one for one in keys() if one.units and one.name not in own and one.table == "[privacy]"):
        last = key.name.removeprefix("privacy.")
        with pytest.raises(ConfigError, match=last):
            Experiment.parse({"privacy": {"unit": unit, **needs, last: 0.5}})
