"""What was written to stderr is read back as JSON."""

import json

import pytest


@pytest.fixture
def lines(capfd):
    """A function: the lines on stderr since the last call, each of which must be a JSON object."""

    def read():
        return [json.loads(line) for line in capfd.readouterr().err.splitlines()]

    return read
