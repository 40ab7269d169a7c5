"""The JSON schema of an experiment's file, by which editors complete and check keys (for TOML, for example Taplo)."""

from typing import Any

from fed_distill.config.experiment import Experiment

DRAFT = "https://json-schema.org/draft/2020-12/schema"


def experiment_schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of an experiment. It accepts every valid file, and finds unknown keys,
    wrong types and single values out of bounds; what several keys must have in common only the program checks."""
    schema = Experiment.model_json_schema(mode="validation")
    return {"$schema": DRAFT, **schema, "title": "fed-distill experiment"}
