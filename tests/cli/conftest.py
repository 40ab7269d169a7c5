"""The command as a user enters it."""

import sys

import pytest

from fed_distill.cli.main import main


@pytest.fixture
def entered(monkeypatch, capsys):
    """A function that runs ``fed-distill`` with these words as the entry point does: exit code, output, errors."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["fed-distill", *map(str, words)])
        try:
            main()
            code = 0
        except SystemExit as left:
            code = left.code or 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
