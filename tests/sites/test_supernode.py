"""A site's SuperNode is told its server by the site's file, and says what to do when it ends."""

import sys

import pytest

from fed_distill.sites import supernode


@pytest.fixture
def started(monkeypatch, tmp_path):
    """A function: start with a file's text, Flower's part in it played by ``flower``; gives how it ended."""

    def start(text, flower):
        path = tmp_path / "site.toml"
        path.write_text(text, encoding="utf-8")
        monkeypatch.setattr(supernode, "flower_supernode", flower)
        monkeypatch.setattr(supernode, "flwr_exit", lambda code, message: sys.exit(1))
        monkeypatch.setattr(sys, "argv", ["supernode", str(path), "--port", "9101"])
        with pytest.raises(SystemExit) as end:
            supernode.main()
        return end.value.code

    return start


ADDRESS = '[server]\naddress = "fed.example.org:8000"'


def test_flower_gets_the_address_and_the_options(started):
    told = []
    assert started(ADDRESS, lambda: told.extend(sys.argv)) == 1
    assert told == ["flower-supernode", "--superlink", "fed.example.org:8000", "--port", "9101"]


@pytest.mark.parametrize(("code", "advised"), [(0, False), (1, True)])
def test_advice_is_given_where_it_did_not_end_well(started, capsys, code, advised):
    assert started(ADDRESS, lambda: sys.exit(code)) == code
    assert ("sites check" in capsys.readouterr().err) == advised


def test_a_supernode_that_has_given_up_is_an_error(started, capsys):
    assert started(ADDRESS, lambda: None) == 1
    assert "sites check" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"), [("[server", "is not valid TOML"), ("server = 1", "has no address"), ("", "has no address")]
)
def test_a_file_without_an_address_is_named(started, text, message):
    assert message in started(text, lambda: None)


def test_a_start_without_a_file_says_how_it_is_used(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["supernode"])
    with pytest.raises(SystemExit, match=r"SITE\.TOML"):
        supernode.main()
