"""A ledger charges once, adds up, survives every crash without an undercharge, and shows every edit."""

import dataclasses
import hashlib
import json
import math
import multiprocessing
import os
import warnings
from contextlib import contextmanager
from pathlib import Path

import pytest
from opacus.accountants import RDPAccountant

from fed_distill.errors import BudgetExceeded, CheckpointError, LedgerError
from fed_distill.privacy.accounting import Spend, epsilon
from fed_distill.privacy.ledger import Charge, Ledger, Ledgers, composed, exposure, read_ledger

TRAINING = Spend(1.2, 0.1, 10)
FORK = multiprocessing.get_context("fork")


def charge(number=1, **changes):
    """Charge for the training of one round."""
    given = {
        "run": "quickstart",
        "arm": "fedavg-kd",
        "seed": 0,
        "round": number,
        "unit": "example",
        "what": "training",
        "request": f"{number:064x}",
        "spends": (TRAINING,),
        "delta": 1e-3,
    }
    return Charge(**{**given, **changes})


ORDERS = (1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 10.0, 20.0, 64.0)


def of_opacus(*spends, delta=1e-5):
    """The filter's epsilon by Opacus: the best of nine orders, among which delta is shared; at 1e-5, which is
    below the charges' own."""
    accountant = RDPAccountant()
    accountant.history = [(spend.noise_multiplier, spend.sampling_rate, spend.steps) for spend in spends]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Optimal order is")
        found = [accountant.get_epsilon(delta / len(ORDERS), alphas=[order]) for order in ORDERS]
    return pytest.approx(min(found), rel=1e-9)


@pytest.fixture
def ledger(tmp_path):
    return Ledgers(tmp_path / "ledgers").of("acme")


@pytest.fixture
def three(ledger):
    """A ledger of three entries."""
    for number in (1, 2, 3):
        ledger.charge(charge(number))
    return ledger


def test_charges_are_read_back_as_they_were_made(ledger):
    made = [
        charge(1),
        charge(1, what="size", spends=(Spend(10.0, 1.0, 1), Spend(0.1 + 0.2, 1 / 3, 7))),
        charge(2, unit="vote", run="läuft 商户", request="00ff", delta=1e-7, seed=3),
    ]
    for each in made:
        ledger.charge(each)
    entries = ledger.entries()
    assert [entry.charge for entry in entries] == made
    assert {entry.merchant for entry in entries} == {"acme"}
    assert all(entry.time.endswith("+00:00") for entry in entries)


def test_rounds_compose_to_one_accountant_over_all_steps(ledger):
    spent = [ledger.charge(charge(number)) for number in range(1, 5)]
    assert spent == [of_opacus(Spend(1.2, 0.1, 10 * rounds)) for rounds in range(1, 5)]
    assert ledger.epsilon("example", accountant="pld") == epsilon([Spend(1.2, 0.1, 40)], 1e-3, "pld") < spent[-1]


def test_two_runs_against_one_ledger_add_up(ledger):
    other = Spend(2.0, 0.3, 5)
    ledger.charge(charge(1))
    total = ledger.charge(charge(1, run="another", spends=(other, Spend(8.0, 1.0, 1))))
    assert total == of_opacus(TRAINING, other, Spend(8.0, 1.0, 1))


def test_an_equal_request_costs_nothing(three):
    before = three.path.read_bytes()
    assert three.charge(charge(2)) == of_opacus(Spend(1.2, 0.1, 30))
    assert three.path.read_bytes() == before


@pytest.mark.parametrize(
    "changes",
    [
        {"request": "ab"},
        {"spends": (Spend(1.2, 0.1, 11),)},
        {"round": 9},
        {"seed": 1},
        {"arm": "fedmd"},
        {"run": "another"},
        {"what": "size"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_request_that_differs_in_anything_is_charged(three, changes):
    before = exposure(entry.charge for entry in three.entries())
    assert three.charge(dataclasses.replace(charge(2), **changes)) > before
    assert len(three.entries()) == 4


def test_units_are_separate_promises(three):
    three.charge(charge(2, unit="merchant"))
    assert three.epsilon("example") == epsilon([Spend(1.2, 0.1, 30)], 1e-3)
    assert three.epsilon("merchant") == epsilon([TRAINING], 1e-3)
    assert three.epsilon("vote") == 0.0
    with pytest.raises(ValueError, match="cannot be composed"):
        composed([entry.charge for entry in three.entries()])


def test_a_limit_is_for_all_units_together(three):
    """A merchant's or a group's release replaces what one example is in: twice as far, half the noise."""
    half = Spend(0.6, 0.1, 10)
    assert three.charge(charge(2, unit="merchant")) == of_opacus(Spend(1.2, 0.1, 30), half)
    assert three.charge(charge(2, unit="group")) == of_opacus(Spend(1.2, 0.1, 30), half, half)
    everything = of_opacus(Spend(1.2, 0.1, 40), half, half)
    assert three.charge(charge(2, unit="vote")) == everything
    before = three.path.read_bytes()
    for unit in ("example", "group", "merchant", "vote"):
        with pytest.raises(BudgetExceeded, match=f"unit {unit}"):
            three.charge(charge(7, unit=unit), max_epsilon=everything.expected)
    assert three.path.read_bytes() == before


def test_a_charge_above_the_limit_is_refused_and_nothing_is_written(three):
    before, limit = three.path.read_bytes(), of_opacus(Spend(1.2, 0.1, 39)).expected
    after = of_opacus(Spend(1.2, 0.1, 40)).expected
    with pytest.raises(
        BudgetExceeded,
        match=rf"merchant acme: budget exceeded: training in round 4 of quickstart .* to {after:.6g}, "
        rf"above the limit of {limit:.6g} \(unit example, delta 1e-05\)",
    ):
        three.charge(charge(4), max_epsilon=limit)
    assert three.path.read_bytes() == before


def test_a_charge_that_exactly_reaches_the_limit_is_paid(three):
    limit = of_opacus(Spend(1.2, 0.1, 40))
    assert three.charge(charge(4), max_epsilon=limit.expected) == limit


def test_a_release_that_was_paid_is_free_under_a_limit_lowered_since(three):
    assert three.charge(charge(2), max_epsilon=0.1) == of_opacus(Spend(1.2, 0.1, 30))


def test_a_release_without_noise_costs_everything(ledger):
    bare = charge(1, spends=(Spend(0.0, 0.1, 1),))
    with pytest.raises(BudgetExceeded, match="from epsilon 0 to inf, above the limit of 8"):
        ledger.charge(bare, max_epsilon=8.0)
    assert ledger.charge(bare) == math.inf
    assert ledger.epsilon("example") == math.inf


def test_a_larger_delta_does_not_make_earlier_charges_look_cheaper(three):
    spent = of_opacus(Spend(1.2, 0.1, 30)).expected
    lax = charge(4, delta=0.5, spends=(Spend(100.0, 0.1, 1),))
    with pytest.raises(BudgetExceeded, match=r"delta 1e-05"):
        three.charge(lax, max_epsilon=spent - 0.1)
    assert three.charge(lax) >= spent
    assert three.epsilon("example", delta=0.5) < three.epsilon("example")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unit": "person"}, "unit must be one of example, group, label, merchant, vote"),
        ({"unit": "person", "moved_by": 2.0}, "unit must be one of example, group, label, merchant, vote"),
        ({"unit": "own:Unit"}, "custom unit require moved_by"),
        ({"unit": "own:Unit", "moved_by": 0.5}, "moved_by must be finite and at least 1"),
        ({"unit": "own:Unit", "moved_by": math.inf}, "moved_by must be finite and at least 1"),
        ({"unit": "own:Unit", "moved_by": math.nan}, "moved_by must be finite and at least 1"),
        ({"unit": "vote", "moved_by": 1.0}, "unit 'vote' is built in"),
        ({"request": "round 3"}, "hex digest"),
        ({"spends": ()}, "at least one spend"),
        ({"delta": 1.0}, "delta must lie between 0 and 1"),
    ],
)
def test_an_impossible_charge_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        charge(1, **changes)


def test_a_charge_of_somebody_s_own_unit_states_what_one_example_moves(ledger):
    """And is composed with all others by that; lines of built-in units are as they ever were."""
    own = charge(2, unit="own_units:ByLabel", moved_by=3.0)
    ledger.charge(charge(1))
    assert ledger.charge(own) == of_opacus(TRAINING, Spend(1.2 / 3.0, 0.1, 10))
    assert [entry.charge for entry in ledger.entries()] == [charge(1), own]
    first, second = (json.loads(line) for line in ledger.path.read_text(encoding="utf-8").splitlines())
    assert first.keys() == {
        *("v", "merchant", "time", "check", "run", "arm", "seed", "round"),
        *("unit", "what", "request", "spends", "delta"),
    }
    assert second.keys() == first.keys() | {"moved_by"} and second["moved_by"] == 3.0


def test_a_ledger_whose_entry_does_not_state_it_is_refused(ledger):
    ledger.charge(charge(1, unit="own_units:ByLabel", moved_by=3.0))
    for stated in (b"", b'"moved_by":0.1,', b'"moved_by":NaN,', b'"moved_by":"much",', b'"moved_by":null,'):
        line = ledger.path.read_bytes().replace(b'"moved_by":3.0,', stated)
        body = line[: line.index(b',"check"')] + b"}"
        sealed = body[:-1] + b',"check":"' + hashlib.sha256(body).hexdigest().encode() + b'"}\n'
        other = ledger.path.with_name("other.jsonl")
        other.write_bytes(sealed)
        with pytest.raises(LedgerError, match="its check is valid but its content is not"):
            read_ledger(other)


def test_every_edited_byte_is_found_with_its_line(ledger):
    for number in (1, 2):
        ledger.charge(charge(number))
    whole = ledger.path.read_bytes()
    for place, byte in enumerate(whole):
        for other in {byte ^ 1, byte ^ 32 if place % 2 else ord("\n")} - {byte}:
            ledger.path.write_bytes(whole[:place] + bytes([other]) + whole[place + 1 :])
            number = 1 + whole[:place].count(b"\n")
            with pytest.raises(LedgerError, match=rf"acme\.jsonl, line {number}: "):
                ledger.entries()
    ledger.path.write_bytes(whole)
    assert len(ledger.entries()) == 2


def test_a_torn_line_is_refused_with_its_number_wherever_it_is_torn(three):
    whole = three.path.read_bytes()
    start = whole[:-1].rindex(b"\n") + 1
    for place in range(start + 1, len(whole)):
        three.path.write_bytes(whole[:place])
        with pytest.raises(LedgerError, match=r"acme\.jsonl, line 3: the line is incomplete; restore an intact copy"):
            three.charge(charge(4))
    assert three.path.read_bytes() == whole[:-1]


def test_an_empty_file_is_refused(three):
    three.path.write_bytes(b"")
    with pytest.raises(LedgerError, match=r"line 1: the file is empty"):
        three.charge(charge(4))


@pytest.mark.parametrize(
    ("kept", "number"), [((1, 2), 1), ((0, 2), 2), ((0, 2, 1), 2), ((1, 0, 2), 1), ((0, 0, 1, 2), 2)], ids=str
)
def test_a_line_that_was_removed_moved_or_repeated_is_found(three, kept, number):
    lines = three.path.read_bytes().splitlines(keepends=True)
    three.path.write_bytes(b"".join(lines[place] for place in kept))
    with pytest.raises(LedgerError, match=rf"line {number}: the check fails"):
        three.entries()


def test_an_older_copy_is_refused_unless_it_lacks_the_newest_line_alone(three):
    whole = three.path.read_bytes()
    lines, entries = whole.splitlines(keepends=True), three.entries()
    three.path.write_bytes(b"".join(lines[:2]))
    assert three.entries() == entries == read_ledger(three.path)
    assert three.charge(charge(3)) == of_opacus(Spend(1.2, 0.1, 30))  # it was paid
    three.charge(charge(4))
    assert len(three.path.read_bytes().splitlines()) == 4
    for kept in (lines[:2], lines[:1], []):
        three.path.unlink()
        if kept:
            three.path.write_bytes(b"".join(kept))
        for attempt in (three.entries, lambda: three.charge(charge(5)), lambda: read_ledger(three.path)):
            with pytest.raises(LedgerError, match="is an older copy or was truncated"):
                attempt()
    three.path.write_bytes(whole)
    assert len(three.entries()) == 4  # the whole copy, and the newest line


def test_without_the_copy_of_its_newest_entry_a_ledger_can_be_read_and_pays_for_nothing(three):
    whole = three.path.read_bytes()
    newest = three.path.parent.with_name("ledgers.newest") / "acme.line"
    newest.unlink()
    assert len(three.entries()) == 3
    with pytest.raises(LedgerError, match="cannot be verified"):
        three.charge(charge(4))
    assert three.path.read_bytes() == whole


def test_where_both_files_are_old_the_last_check_alone_shows_it(three):
    newest = three.path.parent.with_name("ledgers.newest") / "acme.line"
    old = three.path.read_bytes(), newest.read_bytes()
    three.charge(charge(4))
    kept = three.entries()[-1].check
    three.path.write_bytes(old[0])
    newest.write_bytes(old[1])
    assert three.entries()[-1].check != kept


@pytest.mark.parametrize("content", [b"", b"no entry\n", b'{"a": 1}\n{"b": 2}\n'])
def test_a_newest_line_that_is_none_is_refused(three, content):
    newest = three.path.parent.with_name("ledgers.newest") / "acme.line"
    newest.write_bytes(content)
    with pytest.raises(LedgerError, match=r"ledgers\.newest/acme\.line, line 1"):
        three.charge(charge(4))


def test_the_check_is_the_hash_of_the_check_before_and_the_canonical_line(three):
    previous = ""
    for line in three.path.read_text(encoding="utf-8").splitlines():
        fields = json.loads(line)
        check = fields.pop("check")
        text = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        assert check == hashlib.sha256((previous + text).encode()).hexdigest()
        previous = check


def forged(path, **changes):
    """The ledger's first line with other content and a right check."""
    fields = {**json.loads(path.read_bytes().splitlines()[0]), **changes}
    del fields["check"]
    body = json.dumps({key: value for key, value in fields.items() if value is not None}, sort_keys=True).encode()
    return body[:-1] + f',"check":"{hashlib.sha256(body).hexdigest()}"}}\n'.encode()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"v": 2}, "written by another version"),
        ({"v": None}, "content is not"),
        ({"merchant": None}, "content is not"),
        ({"delta": None}, "content is not"),
        ({"delta": 2.0}, "content is not"),
        ({"spends": [{"noise_multiplier": 1.0}]}, "content is not"),
        ({"extra": 1}, "content is not"),
    ],
    ids=str,
)
def test_a_line_of_other_content_with_a_right_check_is_refused(three, changes, message):
    three.path.write_bytes(forged(three.path, **changes))
    with pytest.raises(LedgerError, match=rf"line 1: .*{message}"):
        three.entries()


def test_another_merchants_ledger_is_refused(three):
    with pytest.raises(LedgerError, match=r"line 1: belongs to merchant acme, not to globex"):
        Ledger(three.path, "globex").charge(charge(4))
    content = three.path.read_bytes()
    three.path.write_bytes(content + forged(three.path, merchant="globex"))
    with pytest.raises(LedgerError, match="line 4"):
        read_ledger(three.path)


def test_an_entry_is_on_disk_before_the_charge_returns(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace

    def recorded_fsync(descriptor):
        events.append(f"fsync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name[:6]}")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "replace", lambda old, new: (events.append("rename"), replace(old, new)))
    ledger = Ledgers(tmp_path / "site" / "ledger").of("acme")
    ledger.charge(charge(1))
    made = [f"fsync {tmp_path.name[:6]}", "fsync site", "fsync site"]  # the folder of newest lines too
    assert events == [*made, *["fsync .acme.", "rename", "fsync ledger"] * 2]
    events.clear()
    ledger.charge(charge(1))  # free, but whoever wrote the entry may have died before the folder was flushed
    assert events == ["fsync ledger"]


@contextmanager
def death(at, after):
    """Have the process end before or after its ``at``-th write, flush to disk, rename or new folder.

    A write ends half done. Gives a function that counts these calls.
    """
    count = 0

    def deadly(call):
        def done(*arguments):
            nonlocal count
            count += 1
            if count == at and not after:
                os._exit(9)
            result = call(*arguments)
            if count == at:
                os._exit(9)
            return result

        return done

    class Half:
        """A file whose write has only half happened when it ends the process."""

        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, data):
            self.file.write(data[: len(data) // 2])
            self.file.flush()
            deadly(lambda: self.file.write(data[len(data) // 2 :]))()

    opened = Path.open
    with pytest.MonkeyPatch.context() as patch:
        for name in ("mkdir", "fsync", "replace"):
            patch.setattr(os, name, deadly(getattr(os, name)))
        patch.setattr(Path, "open", lambda path, mode: Half(opened(path, mode)) if mode == "wb" else opened(path, mode))
        yield lambda: count


def charge_and_die(ledger, wanted, at, after):
    with death(at, after):
        ledger.charge(wanted)
    os._exit(0)


def calls_of(ledger, wanted):
    with death(0, False) as count:
        ledger.charge(wanted)
        return count()


@pytest.mark.parametrize("rounds", [0, 2], ids=["first charge", "later charge"])
def test_killed_at_every_write_flush_and_rename_a_restarted_charge_is_paid_exactly_once(tmp_path, rounds):
    steps = calls_of(prepared(tmp_path / "whole", rounds), charge(rounds + 1))
    assert steps >= 4  # write, flush the file, rename, flush the folder
    for at in range(1, steps + 1):
        for after in (False, True):
            ledger = prepared(tmp_path / f"{at}{after}", rounds)
            before = ledger.entries()
            process = FORK.Process(target=charge_and_die, args=(ledger, charge(rounds + 1), at, after))
            process.start()
            process.join()
            assert process.exitcode == 9
            assert ledger.entries()[:rounds] == before and len(ledger.entries()) in (rounds, rounds + 1)
            assert ledger.charge(charge(rounds + 1)) == of_opacus(Spend(1.2, 0.1, 10 * (rounds + 1)))
            assert len(ledger.entries()) == rounds + 1


def prepared(folder, rounds):
    ledger = Ledgers(folder / "ledgers").of("acme")
    for number in range(1, rounds + 1):
        ledger.charge(charge(number))
    return ledger


def test_killed_between_charge_and_release_the_charge_stays(ledger):
    process = FORK.Process(target=charge_then_exit, args=(ledger,))
    process.start()
    process.join()
    assert process.exitcode == 7
    assert len(ledger.entries()) == 1
    assert ledger.charge(charge(1)) == of_opacus(TRAINING)  # the same release, done after the restart
    assert ledger.charge(charge(1, request="ff")) == of_opacus(TRAINING, TRAINING)  # another in its place


def charge_then_exit(ledger):
    ledger.charge(charge(1))
    os._exit(7)


def test_an_error_while_writing_leaves_the_ledger_as_it_was_and_unlocked(three, monkeypatch):
    before = three.path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(CheckpointError, match="the disk is full: free some space"):
            three.charge(charge(4))
    assert three.path.read_bytes() == before
    assert three.charge(charge(4)) == of_opacus(Spend(1.2, 0.1, 40))


def charge_many(ledger, run):
    for number in range(1, 11):
        ledger.charge(charge(number, run=run))


def test_processes_that_charge_at_the_same_time_add_up(ledger):
    exposure([charge(1)])  # so that Opacus is imported once
    processes = [FORK.Process(target=charge_many, args=(ledger, run)) for run in ("a", "b", "c", "a")]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert len(ledger.entries()) == 30  # the second process of run a asked for what the first had paid, or paid it
    assert exposure(entry.charge for entry in ledger.entries()) == of_opacus(Spend(1.2, 0.1, 300))


def test_each_merchant_of_any_name_has_its_own_file(tmp_path):
    ledgers = Ledgers(tmp_path)
    names = ["acme", "../acme", "a/b", ".", "..", "日本", "acme.jsonl", "商户" * 60 + "a", "商户" * 60 + "b", "A c,m'e"]
    for number, name in enumerate(names, 1):
        ledgers.of(name).charge(charge(number))
    assert ledgers.merchants() == sorted(names)
    assert [ledgers.of(name).entries()[0].charge.round for name in names] == list(range(1, len(names) + 1))
    assert len(ledgers.files()) == len(names) and all(path.parent == tmp_path for path in ledgers.files())


def test_a_merchant_without_charges_has_spent_nothing_and_leaves_no_file(tmp_path):
    ledgers = Ledgers(tmp_path / "none")
    assert ledgers.of("acme").entries() == () and ledgers.of("acme").epsilon("example") == 0.0
    assert ledgers.merchants() == [] and not ledgers.folder.exists()
    with pytest.raises(LedgerError, match="there is no ledger at"):
        read_ledger(ledgers.of("acme").path)


def test_a_ledger_under_another_merchants_name_is_refused(three):
    ledgers = Ledgers(three.path.parent)
    three.path.rename(three.path.with_name("globex.jsonl"))
    with pytest.raises(LedgerError, match=r"globex\.jsonl: belongs to merchant acme; move it to acme\.jsonl"):
        ledgers.merchants()
