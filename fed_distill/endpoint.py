"""Metrics over HTTP and as text, by the Prometheus client library, which is an extra.

Text format: https://prometheus.io/docs/instrumenting/exposition_formats/
"""

import importlib
from typing import TYPE_CHECKING, Any, Self

from fed_distill.errors import ConfigError

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

LOCAL = "127.0.0.1"
"""Where metrics are served unless told otherwise: to this machine alone, since nobody is asked for a password."""


def library(wanted_by: str) -> Any:
    """The package prometheus_client; ConfigError that says how to install it, and who wants it."""
    try:
        importlib.import_module("prometheus_client.core")  # which the package itself leaves out
        return importlib.import_module("prometheus_client")
    except ImportError as error:
        raise ConfigError(
            f"{wanted_by} needs the package prometheus-client: pip install fed-distill[metrics], or leave it out"
        ) from error


class Endpoint:
    """Serves a registry's metrics at ``http://address:port/metrics`` until it is closed; use it with ``with``."""

    def __init__(self, registry: "CollectorRegistry", port: int, address: str = LOCAL) -> None:
        """``port`` 0: one that is free. ConfigError if the port or the address cannot be had."""
        try:
            self._server, self._thread = library("an endpoint for metrics").start_http_server(port, address, registry)
        except (OSError, OverflowError) as error:
            raise ConfigError(f"metrics cannot be served at {address}:{port}: {error}; name another port") from error
        self.address = address
        self.port: int = self._server.server_port

    def wait(self) -> None:
        """Serve until the program is interrupted."""
        self._thread.join()

    def close(self) -> None:
        """Stop serving; the port is free afterwards."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def as_text(registry: "CollectorRegistry") -> bytes:
    """All metrics of a registry in Prometheus' text format."""
    text: bytes = library("metrics as text").generate_latest(registry)
    return text
