"""The Flower ServerApp that `flwr run .` starts from a checkout."""

from fed_distill.deploy.server_app import app

__all__ = ["app"]
