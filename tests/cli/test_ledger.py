"""``fed-distill ledger``: what was spent, and every damaged ledger named."""

import pytest
from typer.testing import CliRunner

from fed_distill.cli.main import app
from fed_distill.privacy.accounting import Spend, epsilon
from fed_distill.privacy.ledger import Charge, Ledgers

SPENDS = (Spend(1.2, 0.1, 10), Spend(20.0, 1.0, 1))


@pytest.fixture
def command(entered, monkeypatch):
    """A function that runs a command line as the entry point does: exit code, output, errors."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("NO_COLOR", "1")

    def run(*arguments):
        return entered("ledger", *arguments)

    return run


@pytest.fixture
def ledgers(tmp_path):
    """acme has two entries by example and one by vote, globex one by example."""
    made = Ledgers(tmp_path / "ledgers")
    for merchant, unit, number, delta in [
        ("acme", "example", 1, 1e-3),
        ("acme", "example", 2, 1e-4),
        ("acme", "vote", 1, 1e-3),
        ("globex", "example", 1, 1e-3),
    ]:
        made.of(merchant).charge(Charge("run", "fedmd", 0, number, unit, "training", f"{number:x}", SPENDS, delta))
    return made


def rows(output):
    return [line.split() for line in output.strip().splitlines()]


def shown(name, unit, entries, delta, accountant="pld"):
    spent = epsilon(SPENDS * entries, delta, accountant)
    return [name, unit, str(entries), str(11 * entries), f"{spent:.4g}", f"{delta:.3g}"]


def test_a_narrow_terminal_breaks_names_of_merchants_and_no_date(command, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    made, name = Ledgers(tmp_path / "ledgers"), "a-merchant-with-a-long-name-of-its-own"
    made.of(name).charge(Charge("run", "fedmd", 0, 1, "example", "training", "1", SPENDS, 1e-5))
    _, out, _ = command("show", made.folder)
    first, *more = out.strip().splitlines()[1:]
    assert first.rstrip().endswith(made.of(name).entries()[0].time)
    assert first.split()[0] + "".join(line.strip() for line in more) == name


def test_a_folder_shows_every_merchant_and_unit(command, ledgers):
    code, out, errors = command("show", ledgers.folder)
    assert (code, errors) == (0, "")
    title, *lines = rows(out)
    assert title == ["merchant", "unit", "entries", "steps", "epsilon", "delta", "last", "charge"]
    assert [line[:6] for line in lines] == [
        shown("acme", "example", 2, 1e-4),
        shown("acme", "vote", 1, 1e-3),
        shown("globex", "example", 1, 1e-3),
    ]
    assert lines[0][6] == ledgers.of("acme").entries()[1].time


def test_one_merchant_by_the_closer_accountant(command, ledgers):
    expected = [shown("globex", "example", 1, 1e-3, "rdp")]
    for place in (ledgers.folder, ledgers.of("globex").path):
        code, out, _ = command("show", place, "--merchant", "globex", "--accountant", "rdp")
        assert code == 0
        assert [line[:6] for line in rows(out)[1:]] == expected


def test_verify_prints_the_last_check_and_the_number_of_lines(command, ledgers):
    code, out, errors = command("verify", ledgers.folder)
    assert (code, errors) == (0, "")
    assert rows(out) == [
        [ledgers.of("acme").entries()[-1].check, "3", "acme"],
        [ledgers.of("globex").entries()[-1].check, "1", "globex"],
    ]


def test_verify_names_every_damaged_ledger_and_exits_with_2(command, ledgers):
    ledgers.of("initech").charge(ledgers.of("acme").entries()[0].charge)
    for merchant, old in (("acme", b'"round":2'), ("globex", b'"seed":0')):
        path = ledgers.of(merchant).path
        path.write_bytes(path.read_bytes().replace(old, old[:-1] + b"7"))
    code, out, errors = command("verify", ledgers.folder)
    assert code == 2
    assert [row[1:] for row in rows(out)] == [["1", "initech"]]
    first, second = errors.strip().splitlines()
    assert first.startswith("error: ") and "acme.jsonl, line 2: the check fails" in first
    assert "globex.jsonl, line 1: the check fails" in second


def test_a_single_ledger_may_be_a_copy_under_another_name_but_not_in_the_folder(command, ledgers, tmp_path):
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(ledgers.of("acme").path.read_bytes())
    assert command("verify", copy)[0] == 0
    ledgers.of("globex").path.write_bytes(copy.read_bytes())
    code, _, errors = command("verify", ledgers.folder)
    assert code == 2
    assert "globex.jsonl: belongs to merchant acme" in errors


@pytest.mark.parametrize("word", ["show", "verify"])
def test_a_ledger_that_is_not_there_is_named(command, ledgers, tmp_path, word):
    (tmp_path / "empty").mkdir()
    (tmp_path / "run" / "checkpoint").mkdir(parents=True)
    for arguments, message in [
        (
            [tmp_path / "run"],
            f"its ledgers are in {tmp_path / 'run' / 'checkpoint' / 'ledgers'}/seed-NUMBER/FEDERATION",
        ),
        ([tmp_path / "empty"], f"there is no ledger in {tmp_path / 'empty'}"),
        ([tmp_path / "none"], f"there is no ledger at {tmp_path / 'none'}"),
        ([ledgers.folder, "--merchant", "hooli"], f"there is no ledger at {ledgers.of('hooli').path}"),
        ([ledgers.of("acme").path, "--merchant", "hooli"], "is not the ledger of merchant hooli"),
    ]:
        code, out, errors = command(word, *arguments)
        assert (code, out) == (2, "")
        assert message in errors and len(errors.strip().splitlines()) == 1


@pytest.mark.parametrize("word", ["show", "verify"])
def test_the_help_has_an_example(word):
    result = CliRunner().invoke(app, ["ledger", word, "--help"])
    assert result.exit_code == 0
    assert f"Example: fed-distill ledger {word}" in " ".join(result.output.split())
