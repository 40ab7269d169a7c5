"""Options that no training can mean are refused by name, before anything is trained."""

import pytest

from fed_distill.errors import ConfigError
from fed_distill.methods import METHODS


@pytest.mark.parametrize(
    ("method", "option", "value"),
    [
        ("fedavg", "local_epochs", 0.0),
        ("fedavg", "local_epochs", float("inf")),
        ("fedavg-kd", "local_epochs", -1.0),
        ("fedavg-kd", "proxy_steps", -1),
        ("fedavg-kd", "temperature", 0.0),
        ("fedprox", "proximal_mu", -0.1),
        ("feddf", "server_epochs", 0.0),
        ("feddf", "teacher_share", 1.5),
        ("fedmd", "digest_epochs", 0.0),
        ("fedmd", "teacher_share", -0.5),
        ("fedmd", "temperature", float("nan")),
    ],
)
def test_an_option_out_of_range_is_named(method, option, value):
    with pytest.raises(ConfigError, match=f"method '{method}', option {option}: Input should be"):
        METHODS.build(method, {option: value})


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("fedavg-kd", {"proxy_steps": 0, "local_epochs": 0.25}),
        ("fedprox", {"proximal_mu": 0.0}),
        ("feddf", {"teacher_share": 1.0}),
        ("fedmd", {"teacher_share": 0.0}),
    ],
)
def test_the_ends_of_a_range_are_allowed(method, options):
    assert METHODS.build(method, options)
