"""The OpenAPI document says what the service does: schemathesis sends every route what it allows and what it forbids.

``FED_DISTILL_API_EXAMPLES`` is the number of requests that are drawn for each route beside those at the limits of each
schema; with thousands, the test is a search for defects.
"""

import os
from collections import Counter

import openapi_spec_validator
import pytest
import schemathesis
from jsonschema import Draft202012Validator
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import events, from_schema

from fed_distill.serving.api_keys import key_hash
from fed_distill.serving.index import Product, ProductIndex
from fed_distill.serving.index_files import save_index
from fed_distill.serving.service import build_service
from fed_distill.serving.service_files import SCOPES
from fed_distill.serving.student import load_student
from tests.serving.services import TITLES, config_of, serving

EXAMPLES = int(os.environ.get("FED_DISTILL_API_EXAMPLES", "5"))
KEY = "fdk_test-key"


def key_of(name, scopes, key=KEY):
    return {"name": name, "sha256": key_hash(key), "scopes": scopes, "rate": 1e6, "burst": 1_000_000}


@pytest.fixture(scope="module")
def configs(exported, tmp_path_factory):
    """Settings of services by what they have."""
    trained, export = exported("two-tower")
    folder, student = tmp_path_factory.mktemp("openapi"), load_student(trained)
    products = [Product(f"p{place}", title) for place, title in enumerate(TITLES)]
    save_index(ProductIndex.build(student, products), folder / "index", student.digest)
    return {
        "a student": config_of(export),
        "everything": config_of(
            export,
            canary={"student": export, "share": 0.5, "index": folder / "index", "trained": trained},
            keys=[key_of("operator", SCOPES)],
            index=folder / "index",
            trained=trained,
        ),
        "no student yet": config_of(folder / "none"),
    }


def app_of(name, configs):
    app = build_service(configs[name])
    if name != "no student yet":
        app.state.students.load()
    return app


@pytest.mark.parametrize("name", ["a student", "everything", "no student yet"])
def test_every_answer_is_one_of_the_document(configs, name):
    unready = ["503"] if name == "no student yet" else []
    settings = {
        "base-url": "http://localhost",
        "headers": {"Authorization": f"Bearer {KEY}"} if name == "everything" else {},
        "generation": {"max-examples": EXAMPLES, "deterministic": True, "database": "none"},
        "phases": {"stateful": {"enabled": False}},  # there are no resources
        "checks": {
            "not_a_server_error": {"expected-statuses": ["2xx", "4xx", *unready]},
            "negative_data_rejection": {"expected-statuses": ["401", "405", "413", "422"]},
            # What the schema allows may not fit this student: a text is too long, or there is no index.
            "positive_data_acceptance": {"expected-statuses": ["2xx", "422", *unready]},
        },
    }
    described = schemathesis.openapi.from_asgi(
        "/openapi.json",
        app_of(name, configs),
        config=SchemathesisConfig.from_dict(settings),
        headers={"Host": "localhost"},
    )
    answers, problems = Counter(), []
    for event in from_schema(described).execute():
        if isinstance(event, events.ScenarioFinished):
            for exchange in event.recorder.interactions.values():
                answers[exchange.response.status_code] += 1
            for checks in event.recorder.checks.values():
                problems += [check.failure_info for check in checks if check.failure_info is not None]
        elif isinstance(event, events.NonFatalError | events.FatalError):
            problems.append(event)
    assert not problems, [str(problem)[:1000] for problem in problems[:5]]
    expected = {200, 405, 422, *([503] if unready else []), *([401] if name == "everything" else [])}
    assert expected <= set(answers), answers
    assert sum(answers.values()) > 150


def document_of(config):
    return build_service(config).openapi()


@pytest.mark.parametrize("name", ["a student", "everything", "no student yet"])
def test_the_document_is_valid_openapi(configs, name):
    document = document_of(configs[name])
    openapi_spec_validator.validate(document)
    assert ("securitySchemes" in document["components"]) == (name == "everything")
    assert not {"HTTPValidationError", "ValidationError"} & set(document["components"]["schemas"])


def test_every_example_fits_its_schema_and_is_answered(configs):
    document, found = document_of(configs["everything"]), 0
    with serving(configs["everything"]) as client:
        for path, operations in document["paths"].items():
            for method, one in operations.items():
                if "requestBody" not in one:
                    continue
                reference = one["requestBody"]["content"]["application/json"]["schema"]["$ref"]
                validator = Draft202012Validator({**document, "$ref": reference})
                for example in document["components"]["schemas"][reference.rpartition("/")[2]]["examples"]:
                    validator.validate(example)
                    if path != "/recommend":  # the student's task is relevance
                        answer = client.request(method, path, json=example, headers={"authorization": f"Bearer {KEY}"})
                        assert answer.status_code == 200, answer.text
                    found += 1
    assert found == 7


def test_either_titles_or_products_is_in_the_schema(configs):
    document = document_of(configs["a student"])
    validator = Draft202012Validator({**document, "$ref": "#/components/schemas/RankRequest"})
    titles, products = {"titles": ["hub"]}, {"products": ["p1"]}
    for rest, valid in (
        (titles, True),
        (products, True),
        ({**titles, "products": None}, True),
        ({}, False),
        ({**titles, **products}, False),
        ({"titles": None, "products": None}, False),
    ):
        assert validator.is_valid({"query": "usb", **rest}) == valid, rest


def test_the_scope_of_each_route_is_the_one_that_it_requires(exported):
    keys = [key_of(scope, [scope], f"{KEY}-{scope}") for scope in SCOPES]
    config = config_of(exported("two-tower")[1], keys=keys)
    document, described = document_of(config), {}
    with serving(config) as client:
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                required = operation.get("security", [])
                if not required:
                    assert client.request(method, path).status_code == 200
                    continue
                (scopes,) = (one["accessKey"] for one in required)
                described[path] = scopes
                assert client.request(method, path).status_code == 401
                for scope in SCOPES:
                    headers = {"authorization": f"Bearer {KEY}-{scope}"}
                    status = client.request(method, path, headers=headers).status_code
                    assert (status == 403) == (scope not in scopes), (path, scope, status)
                    assert {"401", "403", "429"} <= set(operation["responses"])
    assert described == {
        "/score": ["score"],
        "/rank": ["rank"],
        "/recommend": ["recommend"],
        "/search": ["search"],
        "/explain": ["explain"],
        "/products": ["index"],
        "/products/delete": ["index"],
        "/metrics": ["metrics"],
        "/admin/reload": ["admin"],
    }
