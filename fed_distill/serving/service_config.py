"""``serve.toml``: which student is served, where, within which limits, and by whose keys it is used.

Relative folders are relative to the file. A key is stored as its SHA-256 hash only.
"""

import ipaddress
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AwareDatetime, Field, ValidationError, model_validator

from fed_distill.config.tables import ConfigTable, Place
from fed_distill.config.toml import first_problem, read_toml
from fed_distill.data.student_description import DESCRIPTION
from fed_distill.errors import ConfigError
from fed_distill.serving.exported_folder import EXPORT, VariantName

SERVE = "serve.toml"
RUN_FILE = "experiment.toml"
"""A file of each run; the module that writes it requires torch."""
MOST_TITLES = 10_000
"""Titles or texts of a request that no setting can exceed."""

Scope = Literal["score", "rank", "recommend", "search", "explain", "index", "metrics", "admin"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]


class StudentTable(ConfigTable):
    """A student and what belongs to it."""

    student: Place = Field(description="folder that fed-distill export wrote")
    variant: VariantName = Field("float32", description="variant of the export")
    index: Place | None = Field(None, description="folder that fed-distill index wrote with this student, for /search")
    trained: Place | None = Field(
        None, description="folder of the run that trained this student, for /explain, which computes with torch"
    )


class ServiceTable(StudentTable):
    """What is served, and where."""

    host: str = Field("127.0.0.1", description="address to listen on; any but a loopback address requires keys or open")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(8080, description="port; 0: any free port")
    workers: Annotated[int, Field(ge=1, le=64)] = Field(
        1, description="processes that answer on the port; limits, cached vectors and batches are those of each"
    )
    threads: Annotated[int, Field(ge=1, le=64)] = Field(1, description="threads of onnxruntime for a batch")
    open: bool = Field(False, description="serve anybody without a key: on any address, and under any host name")
    watch_seconds: Annotated[float, Field(gt=0.0, le=3600.0)] = Field(
        2.0, description="seconds between looks at the student's files and at the keys in this file"
    )
    drain_seconds: Annotated[float, Field(ge=0.0, le=600.0)] = Field(
        0.0, description="seconds after SIGTERM in which requests are still answered while /ready is 503 already"
    )
    cached_vectors: Annotated[int, Field(ge=1, le=10_000_000)] = Field(
        100_000, description="texts whose vectors are kept, the least recently used leave first (two-tower, static)"
    )
    access_log: bool = Field(True, description="log method, route, status, duration and key name of each request")


class CanaryTable(StudentTable):
    """A second student that answers a share of the requests."""

    share: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        0.05, description="share of sessions, or of bodies of requests without a session"
    )


class ShadowTable(StudentTable):
    """A second student that is asked in the background, and answers nobody."""

    share: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        0.05, description="share of the requests to /rank, /recommend and /search"
    )
    queue: Annotated[int, Field(ge=1, le=10_000)] = Field(
        100, description="requests that wait for the shadow; further ones are dropped"
    )


class DriftTable(ConfigTable):
    """How traffic is compared with the data of the run."""

    window_seconds: Annotated[float, Field(ge=10.0, le=7 * 86400.0)] = Field(
        900.0, description="seconds of traffic that are compared"
    )
    requests_per_second: Annotated[float, Field(ge=0.0, le=1e6)] = Field(
        10.0, description="requests that are watched, at random if there are more; 0: none"
    )


class LimitsTable(ConfigTable):
    """What one request, and all of them together, may take."""

    titles: Annotated[int, Field(ge=1, le=MOST_TITLES)] = Field(1000, description="titles or texts of a request")
    body_bytes: Annotated[int, Field(ge=1024, le=2**26)] = Field(2**20, description="size of a request's body")
    body_seconds: Annotated[float, Field(gt=0.0, le=600.0)] = Field(
        10.0, description="seconds in which the headers, and then the body, must arrive"
    )
    products: Annotated[int, Field(ge=1, le=10_000_000)] = Field(
        100_000, description="products that the index may have after requests that add to it"
    )
    in_flight: Annotated[int, Field(ge=1, le=65536)] = Field(256, description="requests at once; more are answered 503")
    connections: Annotated[int, Field(ge=1, le=65536)] = Field(
        2048, description="open connections; more are answered 503"
    )
    batch_rows: Annotated[int, Field(ge=1, le=65536)] = Field(2048, description="pairs that are scored in one batch")
    queued_rows: Annotated[int, Field(ge=1, le=2**20)] = Field(
        20_000, description="pairs that wait for the next batch; further requests are answered 503"
    )
    stop_seconds: Annotated[int, Field(ge=1, le=600)] = Field(
        30, description="seconds that requests in progress have to finish when the service is stopped"
    )


class KeyTable(ConfigTable):
    """Who may use which routes, and how often."""

    name: Name = Field(description="name in logs; letters, digits, dots, hyphens and underscores")
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] = Field(description="SHA-256 of the key, hexadecimal")
    scopes: Annotated[list[Scope], Field(min_length=1)] = Field(description="routes that the key may use")
    rate: Annotated[float, Field(gt=0.0, le=1e6)] = Field(100.0, description="requests a second in the long run")
    burst: Annotated[int, Field(ge=1, le=1_000_000)] = Field(200, description="requests at once after a pause")
    expires: AwareDatetime | None = Field(None, description="time with its zone after which the key is refused")


class ServeConfig(ConfigTable):
    """Content of ``serve.toml``."""

    service: ServiceTable
    canary: CanaryTable | None = None
    shadow: ShadowTable | None = None
    drift: DriftTable = Field(default_factory=DriftTable)
    limits: LimitsTable = Field(default_factory=LimitsTable)
    key: list[KeyTable] = Field(default_factory=list)

    @model_validator(mode="after")
    def _keys_differ(self) -> Self:
        for what in ("name", "sha256"):
            values = [getattr(one, what) for one in self.key]
            if len(set(values)) < len(values):
                raise ValueError(f"two keys have one {what}: remove one of them")
        return self

    @model_validator(mode="after")
    def _canary_answers_all_routes(self) -> Self:
        for name, route in (("index", "/search"), ("trained", "/explain")):
            if self.canary and getattr(self.service, name) and not getattr(self.canary, name):
                raise ValueError(
                    f"canary.{name} is missing, and service.{name} is set: the canary could not answer its share of "
                    f"{route}. Set canary.{name}, or remove service.{name}"
                )
        return self

    @property
    def loopback(self) -> bool:
        """Whether only this machine reaches the service."""
        try:
            return ipaddress.ip_address(self.service.host).is_loopback
        except ValueError:
            return self.service.host == "localhost"

    def check_access(self) -> None:
        """Raise ConfigError if anybody on the network could use the service and nobody has said so."""
        if not (self.key or self.loopback or self.service.open):
            raise ConfigError(
                f"service.host = {self.service.host!r} is reached by other machines, and there is no key: add one with "
                "fed-distill serve DIR --add-key NAME, or set service.open = true"
            )


def read_serve_config(folder: Path, beside: Mapping[str, Path] | None = None) -> ServeConfig:
    """Read ``serve.toml`` of ``folder``; a folder that is an export itself is served with default settings.

    :param beside: of an export: folders by their key of ``[service]``, ``index`` and ``trained``
    :raises ConfigError: the folder is neither or missing, ``beside`` is given and there is a file, or the file is not
        valid; the message names the key
    """
    path = folder / SERVE
    if not path.exists():
        if (folder / EXPORT).is_file():
            return ServeConfig(service=ServiceTable.model_validate({"student": folder, **(beside or {})}))
        raise ConfigError(_unservable(folder))
    for name in beside or {}:
        raise ConfigError(f"--{name} is of an export, and {path} exists: set service.{name} there")
    found = _validated(path, read_toml(path, "service settings"))
    tables = {"service": found.service, "canary": found.canary, "shadow": found.shadow}
    return found.model_copy(update={name: _placed(table, folder) for name, table in tables.items() if table})


def _unservable(folder: Path) -> str:
    """Return why ``folder``, which has no settings and is no export, cannot be served."""
    if not folder.is_dir():
        return f"{folder} is not a folder" if folder.exists() else f"{folder} does not exist"
    trained = {RUN_FILE: "run", DESCRIPTION: "trained student"}
    for name, what in trained.items():
        if (folder / name).is_file():
            return f"{folder} is a {what}: export it first: fed-distill export {folder} --to exported"
    return (
        f"{folder} has neither {SERVE} nor {EXPORT}: name an export, or write {SERVE} with fed-distill serve {folder} "
        "--init --student EXPORT"
    )


def validated_text(path: Path, text: str) -> ServeConfig:
    """Validate the ``text`` of a ``serve.toml`` before it is written; errors are those of ``read_serve_config``."""
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    return _validated(path, content)


def _placed(table: StudentTable, folder: Path) -> StudentTable:
    """Return the table with its folders in ``folder``, unless they are absolute."""
    places = {name: getattr(table, name) for name in ("student", "index", "trained")}
    return table.model_copy(update={name: folder / place for name, place in places.items() if place is not None})


def _validated(path: Path, content: dict[str, Any]) -> ServeConfig:
    try:
        return ServeConfig.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"{path}: {first_problem(error, ServeConfig)}") from error
