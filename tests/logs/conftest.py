"""Logging is left as it was found, and what was written to stderr is read back as JSON."""

import json

import pytest

from fed_distill import logs


@pytest.fixture
def restored():
    """Whatever a test, or an app that it calls, changes of this process's logging is changed back."""
    yield
    while logs._installed:
        logs._installed.pop().remove()


@pytest.fixture
def lines(restored, capfd):
    """A function: the lines on stderr since the last call, each of which must be a JSON object."""

    def read():
        return [json.loads(line) for line in capfd.readouterr().err.splitlines()]

    return read
