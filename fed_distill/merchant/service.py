"""The part of ``site.toml`` that a site's processes read before large imports: its server and its rules."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fed_distill.config.toml import first_problem, read_toml
from fed_distill.errors import ConfigError
from fed_distill.merchant.limits import Limits


class Server(BaseModel):
    """The server that the site connects to."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    address: Annotated[str, Field(pattern=r"^.+:\d{1,5}$")] = Field(description="address of the server, HOST:PORT")
    app: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = Field(
        None,
        description="SHA-256 of the app bundle that the site accepts; none: that of the installed package",
    )
    versions: Mapping[str, str] = Field({}, description="the server's versions, by package")


class Service(BaseModel):
    """Server and limits of ``site.toml``.

    ``merchant.manifest`` reads the whole file and imports data libraries, which need some hundred megabytes more.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    server: Server
    limits: Limits = Limits()

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a ``site.toml``; raise ConfigError with the file and the first invalid key of these tables."""
        try:
            return cls.model_validate(read_toml(path, "the site in"))
        except ValidationError as error:
            raise ConfigError(f"{path}: {first_problem(error, cls)}") from error
