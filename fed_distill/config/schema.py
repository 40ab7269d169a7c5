"""The JSON schema of an experiment's file, by which editors complete and check keys (for TOML, for example Taplo)."""

from typing import Any

from fed_distill.config.experiment import Experiment
from fed_distill.config.privacy import GAUSSIAN, UNITS, LabelPrivacy, OwnPrivacy, is_protected

DRAFT = "https://json-schema.org/draft/2020-12/schema"


def experiment_schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of an experiment. It accepts every valid file, and finds unknown keys,
    wrong types and single values out of bounds; what several keys must have in common only the program checks."""
    schema = Experiment.model_json_schema(mode="validation")
    for key in GAUSSIAN:  # inherited, and not of labels
        schema["$defs"][LabelPrivacy.__name__]["properties"].pop(key)
    schema["properties"]["privacy"] = {**_privacy(), "title": "Privacy"}
    return {"$schema": DRAFT, **schema, "title": "fed-distill experiment"}


def _privacy() -> dict[str, Any]:
    """Return the schema of ``[privacy]``, whose keys depend on ``unit``, as conditions: pydantic, which selects the
    table by a function, can only list all of them, and a file may be valid by several."""
    cases = []
    for unit, table in UNITS.items():
        condition: dict[str, Any] = {"properties": {"unit": {"const": unit}}}
        if is_protected(unit):  # without the key there is no protection
            condition["required"] = ["unit"]
        cases.append({"if": condition, "then": {"$ref": f"#/$defs/{table.__name__}"}})
    custom = {"properties": {"unit": {"not": {"enum": list(UNITS)}}}, "required": ["unit"]}
    return {"type": "object", "allOf": [*cases, {"if": custom, "then": {"$ref": f"#/$defs/{OwnPrivacy.__name__}"}}]}
