"""The Flower ClientApp that `flwr run .` starts from a checkout."""

from fed_distill.merchant.app import app

__all__ = ["app"]
