"""The service's OpenAPI document: FastAPI's own, with what ``Gate`` answers before a route is called.

FastAPI knows parameters and answers of the routes. Keys, their scopes and the limits are checked in front of them, so
that the document gets them here, for every route at once.
"""

from collections.abc import Mapping
from typing import Any, get_args

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from fed_distill.serving.api_models import ErrorAnswer
from fed_distill.serving.gate import Rules
from fed_distill.serving.request_ids import REQUEST_ID_HEADER, REQUEST_ID_PATTERN
from fed_distill.serving.service_config import LimitsTable, Scope

VERSION_HEADER = "X-Student-Version"
_SCHEME = "accessKey"
_JSON = "application/json"
_DESCRIPTIONS = {
    401: "no valid key",
    403: "the key has no such scope",
    408: "the body did not arrive in time",
    413: "the body is too large",
    422: "a value is wrong, or does not fit the student",
    429: "the key's rate is used up",
    503: "no student is loaded, too much is waiting, or the index cannot be changed now",
}
_RETRY = {
    "description": "seconds after which to try again",
    "required": True,
    "schema": {"type": "integer", "minimum": 1},
}
_SCHEME_HEADER = {"description": "the scheme", "required": True, "schema": {"type": "string", "const": "Bearer"}}
_REQUEST_ID = {
    "description": "id of the request in the service's log: that of the request's own header, if it is of this form",
    "required": True,
    "schema": {"type": "string", "pattern": REQUEST_ID_PATTERN},
}
_HEADERS: Mapping[int, dict[str, Any]] = {
    401: {"WWW-Authenticate": _SCHEME_HEADER},
    429: {"Retry-After": _RETRY},
    503: {"Retry-After": _RETRY},
}
_ANSWERING = frozenset({"score", "rank", "recommend", "search", "explain"})
"""Scopes of the routes that a student answers."""


def describe(app: FastAPI, rules: Rules, limits: LimitsTable, keyed: bool, local_only: bool) -> None:
    """Make ``/openapi.json`` describe the routes of ``app`` and what is checked before them.

    :param rules: scope of each path, as ``Gate`` has them
    :param keyed: whether requests need an access key
    :param local_only: whether requests under a host name other than this machine's are refused
    """

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app, rules, limits, keyed, local_only)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]  # FastAPI's documented way to extend the document


def _document(app: FastAPI, rules: Rules, limits: LimitsTable, keyed: bool, local_only: bool) -> dict[str, Any]:
    found = get_openapi(
        title=app.title,
        version=app.version,
        description=(
            f"{app.description} A request has at most {limits.titles:,} titles or texts, and a body of at most "
            f"{limits.body_bytes:,} bytes."
        ),
        routes=app.routes,
    )
    components = found.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for unused in ("HTTPValidationError", "ValidationError"):  # FastAPI's own form of errors
        schemas.pop(unused, None)
    schemas[ErrorAnswer.__name__] = ErrorAnswer.model_json_schema()
    if keyed:
        scopes = ", ".join(get_args(Scope))
        components["securitySchemes"] = {
            _SCHEME: {
                "type": "http",
                "scheme": "bearer",
                "description": f"An access key of this service. Scopes, which it has some of: {scopes}.",
            }
        }
    for path, operations in found["paths"].items():
        for operation in operations.values():
            scope = rules.get(path)
            if keyed and scope is not None:
                operation["security"] = [{_SCHEME: [scope]}]
            _add_answers(operation, path, scope, keyed, local_only)
    return found


def _add_answers(operation: dict[str, Any], path: str, scope: Scope | None, keyed: bool, local_only: bool) -> None:
    answers = operation["responses"]
    if scope in _ANSWERING:
        answers["200"]["headers"] = {
            VERSION_HEADER: {
                "description": "version of the student that answered",
                "required": True,
                "schema": {"type": "string", "pattern": "^[0-9a-f]{12}$"},
            }
        }
    statuses = {408, 413}
    if keyed and scope is not None:
        statuses |= {401, 403, 429}
    elif local_only:
        statuses |= {403}
    if path != "/health":  # which answers however much is waiting
        statuses |= {503}
    if "requestBody" in operation:
        statuses |= {422}
    for status in sorted(statuses):
        described = answers.get(str(status))
        if status == 503 and described is not None:  # a route that says more, as /ready does
            own = described["content"][_JSON]["schema"]
            described["content"][_JSON]["schema"] = {"anyOf": [own, _reference()]}
        else:
            answers[str(status)] = _refusal(status, local_only)
    for answer in answers.values():
        answer["headers"] = {**answer.get("headers", {}), REQUEST_ID_HEADER: _REQUEST_ID}


def _refusal(status: int, local_only: bool) -> dict[str, Any]:
    description = "the host name is not this machine's" if status == 403 and local_only else _DESCRIPTIONS[status]
    answer: dict[str, Any] = {"description": description, "content": {_JSON: {"schema": _reference()}}}
    if status in _HEADERS:
        answer["headers"] = _HEADERS[status]
    return answer


def _reference() -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{ErrorAnswer.__name__}"}
