"""What a site's processes must know of its ``site.toml`` before they load anything large: its server and its rules."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fed_distill.config.toml import first_problem, read_toml
from fed_distill.errors import ConfigError
from fed_distill.merchant.limits import Limits


class Server(BaseModel):
    """Where the server is, HOST:PORT, and what it runs: versions by package, and the bundle of the app.

    app: SHA-256 of the one bundle that the site accepts (``fed_distill.deploy.bundle``); None for that of the package
    that is installed at the site.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    address: Annotated[str, Field(pattern=r"^.+:\d{1,5}$")]
    app: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    versions: Mapping[str, str] = {}


class Service(BaseModel):
    """The part of ``site.toml`` that says to whom a site answers, and what that may cost.

    ``merchant.manifest`` reads all of it, and with it the libraries that data need: some hundred megabytes more.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    server: Server
    limits: Limits = Limits()

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a ``site.toml``; ConfigError naming the file and the first wrong key of these tables."""
        try:
            return cls.model_validate(read_toml(path, "the site in"))
        except ValidationError as error:
            raise ConfigError(f"{path}: {first_problem(error)}") from error
