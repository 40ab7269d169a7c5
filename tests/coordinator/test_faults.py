"""The fault drill: what goes wrong in real networks is injected; the run ends well or can be resumed, nothing is lost,
and the report counts what happened."""

import errno
import json
import os
import shutil
import subprocess
from datetime import datetime

import pytest
from flwr.app import Context

import fed_distill.merchant.app
from fed_distill.data import load
from fed_distill.errors import CheckpointError, DataError, TrainingError
from fed_distill.experiment.grid import InProcessGrid
from fed_distill.experiment.run import run_experiment
from fed_distill.merchant.app import build_app
from fed_distill.merchant.limits import OPEN, Rules
from fed_distill.merchant.opening import open_site
from fed_distill.privacy.ledger import Ledgers
from fed_distill.reporting.callbacks import CallbackList
from fed_distill.storage.files import as_file_name
from fed_distill.transport.requests import ANSWER, EVALUATE, PROTOCOL, QUERY_MERCHANTS, TRAIN

QUICK = {"controls": [], "adaptation.enabled": False, "runtime.measure_speed": False, "federation.pause": 0.0}
SITES = 3
SECOND = 3
"""Node id of the second site."""


class FaultyGrid(InProcessGrid):
    """A grid of three sites whose subclasses make something go wrong; honest itself.

    rounds: of the round that was asked for last. looks: how often the server has looked who is there since then.
    """

    def __init__(self, experiment, app=None):
        super().__init__(app or build_app(), experiment.to_run_config(), SITES)
        self.experiment = experiment
        self.round = self.looks = 0

    def get_node_ids(self):
        self.looks += 1
        return super().get_node_ids()

    def _queue(self, message_id, message):
        if message.metadata.message_type == TRAIN and round_of(message) != self.round:
            self.round, self.looks = round_of(message), 0
        super()._queue(message_id, message)

    def run(self):
        return run_experiment(self.experiment, self, CallbackList(()))


class SilentSite(FaultyGrid):
    """The second site never answers in round 1."""

    def pull_messages(self, message_ids):
        return super().pull_messages(key for key in message_ids if not self._is_silent(self._queued.get(key)))

    def _is_silent(self, message):
        if message is None or message.metadata.message_type != TRAIN:
            return False
        return message.metadata.dst_node_id == SECOND and round_of(message) == 1


class LateSite(FaultyGrid):
    """The second site is late in round 2 the first time: it has trained, and its reply comes when it is too late."""

    def __init__(self, *args):
        super().__init__(*args)
        self.late, self.strays = None, 0

    def pull_messages(self, message_ids):
        stray = [self.late] if self.late is not None and not self.strays else []
        replies = super().pull_messages(message_ids)
        for reply in replies:
            if self.late is None and is_training(reply, SECOND, 2):
                self.late = reply
        if stray and any(is_training(reply, SECOND, 2) for reply in replies):
            self.strays += 1
            return [*stray, *replies]
        return [reply for reply in replies if reply is not self.late]


class LeavingSite(FaultyGrid):
    """The second site is away in round 2, and comes back as another node of Flower's."""

    BACK = 77

    def get_node_ids(self):
        nodes = super().get_node_ids()
        if self.round == 0:
            return nodes
        return [node for node in nodes if node != SECOND] + ([self.BACK] if self.round > 1 else [])

    def _run_at_node(self, message):
        if message.metadata.dst_node_id == self.BACK and self.BACK not in self._contexts:
            config = self._contexts[SECOND].node_config
            own = self._contexts[SECOND]
            self._contexts[self.BACK] = Context(own.run_id, self.BACK, config, own.state, own.run_config)
        return super()._run_at_node(message)


class LeavingSites(FaultyGrid):
    """All sites but one are away when the server looks before round 2, twice."""

    def get_node_ids(self):
        nodes = super().get_node_ids()
        return nodes[:1] if self.round == 1 and self.looks <= 2 else nodes


class AwayAtTheEnd(FaultyGrid):
    """The second site never answers when a student is measured."""

    def pull_messages(self, message_ids):
        def is_silent(message):
            return (
                message is not None
                and message.metadata.message_type == EVALUATE
                and message.metadata.dst_node_id == SECOND
            )

        return super().pull_messages(key for key in message_ids if not is_silent(self._queued.get(key)))


def round_of(message):
    return message.content["down"]["round"]


def is_training(reply, node, number):
    metadata = reply.metadata
    if metadata.message_type != TRAIN or metadata.src_node_id != node:
        return False
    return reply.content[ANSWER]["to"].endswith(f"round {number}")


def lines_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))


def answers_of(folder):
    return summary_of(folder)["answers"]["fedavg-kd"]


def student_of(folder):
    return (folder / "student" / "model.safetensors").read_bytes()


def charges_of(folder):
    ledgers = Ledgers(folder / "checkpoint" / "ledgers" / "seed-0" / "fedavg-kd")
    return {merchant: [entry.charge for entry in ledgers.of(merchant).entries()] for merchant in ledgers.merchants()}


def test_a_silent_site_is_not_waited_for_longer_than_the_deadline(tiny_experiment, tmp_path):
    experiment = tiny_experiment(tmp_path, {**QUICK, "federation.deadline": 0.2})
    folder = SilentSite(experiment).run()
    first, second = lines_of(folder)
    late = first["answers"]["late"]
    assert 1 <= late <= 2
    assert first["answers"] == {"asked": 5, "merged": 5 - late, "late": late, "absent": 0, "resting": 0, "refused": 0}
    assert len(first["reasons"]) == late
    assert all(f"site {SECOND} did not answer within 0.2 s" in reason for reason in first["reasons"])
    assert all(reason.startswith("merchant ") for reason in first["reasons"])
    assert second["answers"]["merged"] == second["merchants"] == 5
    counted = answers_of(folder)
    assert (counted["rounds"], counted["asked"], counted["merged"], counted["late"]) == (2, 10, 10 - late, late)
    assert sorted(reason for reason, _ in counted["reasons"]) == sorted(first["reasons"])
    report = (folder / "report.html").read_text(encoding="utf-8")
    assert "Who took part" in report and "did not answer within 0.2 s" in report


def test_a_student_that_a_site_did_not_measure_says_so(tiny_experiment, tmp_path):
    experiment = tiny_experiment(tmp_path, {**QUICK, "federation.deadline": 0.2})
    whole, folder = (
        grid(experiment.with_changes({"name": grid.__name__})).run() for grid in (FaultyGrid, AwayAtTheEnd)
    )
    everybody, heard = (set(summary_of(one)["by_merchant"]["counts"]) for one in (whole, folder))
    unheard = sorted(everybody - heard)
    assert 1 <= len(unheard) <= 2
    note = f"seed {experiment.seed}: {', '.join(unheard)}"
    assert summary_of(folder)["federations"]["fedavg-kd"]["notes"]["merchant_accuracy"] == note
    assert "merchant_accuracy" not in summary_of(whole)["federations"]["fedavg-kd"]["notes"]
    report = (folder / "report.html").read_text(encoding="utf-8")
    assert f"not measured at merchants without a reply from their site, {note}." in report


KEPT = {
    "private": {"privacy": {"unit": "example", "epsilon": 8.0, "batch_size": 16}},
    "error feedback": {"transport.weights": [{"stage": "top-k", "share": 0.2}, "int8"]},
    "own students and a cache": {
        "federation.method": "fedmd",
        "federation.options": {},
        "federation.label": "fedavg-kd",
        "transport.soft_labels": ["int8"],
        "transport.soft_label_cache": 0.01,
    },
}


@pytest.mark.parametrize("changes", KEPT.values(), ids=lambda changes: next(iter(changes)))
def test_who_was_late_answers_the_same_again_and_pays_once(tiny_experiment, tmp_path, changes):
    """A round that lacks a site is asked again, and ends as if nobody had been late; the late reply, which comes in the
    middle of it, is dropped."""
    changes = {**QUICK, **changes, "federation.rounds": 3, "federation.minimum_share": 1.0, "federation.deadline": 0.01}
    whole = FaultyGrid(tiny_experiment(tmp_path / "whole", changes)).run()
    grid = LateSite(tiny_experiment(tmp_path / "late", changes))
    folder = grid.run()
    assert grid.strays == 1
    assert student_of(folder) == student_of(whole)
    assert charges_of(folder) == charges_of(whole)
    one, two, three = lines_of(folder)
    assert [len(line["retried"]) for line in (one, two, three)] == [0, 1, 0]
    assert "merchants can be merged; merchant " in two["retried"][0]
    assert f"site {SECOND} did not answer within 0.01 s" in two["retried"][0]
    assert two["answers"]["merged"] == 5
    assert answers_of(folder)["retried"] == 1
    kept = [{**line, "retried": [], "seconds": 0} for line in lines_of(folder)]
    assert kept == [{**line, "seconds": 0} for line in lines_of(whole)]


def test_too_few_for_too_long_end_the_run_which_goes_on_later_and_patiently(tiny_experiment, tmp_path):
    changes = {**QUICK, "federation.minimum_share": 1.0, "federation.deadline": 0.01, "federation.retries": 1}
    whole = FaultyGrid(tiny_experiment(tmp_path / "whole", changes)).run()
    experiment = tiny_experiment(tmp_path / "few", changes)
    with pytest.raises(
        TrainingError, match=r"did not answer within 0\.01 s; all 2 attempts failed.*continue with --resume"
    ):
        SilentSite(experiment).run()
    patient = experiment.with_changes({"runtime.resume": True, "federation.retries": 5, "federation.deadline": 60.0})
    assert student_of(FaultyGrid(patient).run()) == student_of(whole)


def test_a_round_that_is_too_small_for_its_aggregator_is_repeated(tiny_experiment, tmp_path):
    changes = {**QUICK, "federation.aggregator": "krum", "federation.deadline": 0.01, "federation.rounds": 3}
    one, two, _ = lines_of(LateSite(tiny_experiment(tmp_path, changes)).run())
    assert (one["retried"], len(two["retried"]), two["merchants"]) == ([], 1, 5)


def test_a_site_that_leaves_is_not_waited_for_and_comes_back_as_another_node(tiny_experiment, tmp_path, caplog):
    folder = LeavingSite(tiny_experiment(tmp_path, {**QUICK, "federation.rounds": 3})).run()
    one, two, three = lines_of(folder)
    absent = two["answers"]["absent"]
    assert (one["merchants"], two["merchants"], three["merchants"]) == (5, 5 - absent, 5)
    assert 1 <= absent == len(two["reasons"]) == answers_of(folder)["absent"]
    assert all(reason.endswith("its site is offline") for reason in two["reasons"])
    assert f"site {SECOND} is offline" in caplog.text
    assert f"site {LeavingSite.BACK} is online again, with " in caplog.text


def test_when_most_are_away_nobody_is_asked_until_they_are_back(tiny_experiment, tmp_path):
    changes = {**QUICK, "federation.minimum_share": 0.8}
    whole = FaultyGrid(tiny_experiment(tmp_path / "whole", changes)).run()
    folder = LeavingSites(tiny_experiment(tmp_path / "away", changes)).run()
    _, two = lines_of(folder)
    assert len(two["retried"]) == 2
    assert "merchants are online; merchant " in two["retried"][0]
    assert student_of(folder) == student_of(whole)


def test_a_round_out_of_hours_waits_for_them(tiny_experiment, tmp_path, monkeypatch):
    """Noon twice, then night: what a site allows only at night is asked for until it is."""
    times = iter([12, 12])

    def opened(experiment, part, parts, data=None):
        site = open_site(
            experiment, part, parts, data, OPEN.model_copy(update={"rules": Rules(hours="22:00-06:00", scores=True)})
        )
        site.protection.clock = lambda: datetime(2026, 1, 1, next(times, 23))
        return site

    whole = FaultyGrid(tiny_experiment(tmp_path / "whole", QUICK)).run()
    monkeypatch.setattr(fed_distill.merchant.app, "open_site", opened)
    folder = FaultyGrid(tiny_experiment(tmp_path / "night", {**QUICK, "federation.minimum_share": 0.9})).run()
    first = lines_of(folder)[0]
    assert len(first["retried"]) == 1
    assert "rule hours: 22:00-06:00, and the site's time is 12:00" in first["retried"][0]
    assert student_of(folder) == student_of(whole)


def tampered(change, node=SECOND, kind=TRAIN):
    """The honest app, of which one site's replies are changed: ``change(reply)`` gives another reply."""
    inner = build_app()

    def app(message, context):
        reply = inner(message, context)
        return change(reply) if context.node_id == node and message.metadata.message_type == kind else reply

    return app


def test_a_reply_of_an_earlier_round_is_rejected_and_survived(tiny_experiment, tmp_path):
    first = []

    def replay(reply):
        first.append(reply.content)
        reply.content = first[0]
        return reply  # in round 2 with what was sent in round 1

    folder = FaultyGrid(tiny_experiment(tmp_path, QUICK), tampered(replay)).run()
    one, two = lines_of(folder)
    assert one["merchants"] == 5
    assert two["merchants"] == 5 - two["answers"]["refused"] < 5
    expected = "the request was fedavg-kd, seed 0, round 2, but its reply is to fedavg-kd, seed 0, round 1"
    assert [expected in reason for reason in two["reasons"]] == [True]


def other_protocol(reply):
    record = reply.content["merchants"]
    record["protocol"], record["versions"] = PROTOCOL - 1, ["fed-distill 0.0.1"]
    return reply


def test_a_site_of_another_version_is_left_out_by_name(tiny_experiment, tmp_path, caplog):
    folder = FaultyGrid(tiny_experiment(tmp_path, QUICK), tampered(other_protocol, kind=QUERY_MERCHANTS)).run()
    assert 3 <= lines_of(folder)[0]["merchants"] < 5
    assert f"site {SECOND} has protocol {PROTOCOL - 1}, and this server {PROTOCOL}: install fed-distill" in caplog.text
    assert "(fed-distill 0.0.1)" in caplog.text


def test_sites_of_other_versions_only_end_the_run_with_one_clear_line(tiny_experiment, tmp_path):
    inner = build_app()

    def app(message, context):
        return other_protocol(inner(message, context))

    with pytest.raises(DataError, match=f"no site has a merchant: site 2 has protocol {PROTOCOL - 1}, and"):
        FaultyGrid(tiny_experiment(tmp_path, QUICK), app).run()


def full_disk(monkeypatch, is_full):
    """From now on what is flushed into a file whose path is full raises as a full disk does."""
    fsync = os.fsync

    def flush(descriptor):
        if is_full(os.readlink(f"/proc/self/fd/{descriptor}")):
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", flush)


@pytest.mark.parametrize("file", ["rounds.safetensors", "metrics.jsonl", "summary.json", "student"])
def test_a_full_disk_at_the_server_stops_the_run_which_goes_on_when_there_is_room(
    tiny_experiment, tmp_path, monkeypatch, file
):
    whole = FaultyGrid(tiny_experiment(tmp_path / "whole", QUICK)).run()
    experiment = tiny_experiment(tmp_path / "full", QUICK)
    with monkeypatch.context() as patched:
        full_disk(patched, lambda path: file in path.removeprefix(str(tmp_path)))
        with pytest.raises(CheckpointError, match=r"cannot be written because the disk is full: free some space"):
            FaultyGrid(experiment).run()
    folder = FaultyGrid(experiment.with_changes({"runtime.resume": True})).run()
    assert student_of(folder) == student_of(whole)
    assert [(line["round"], line["merchants"]) for line in lines_of(folder)] == [(1, 5), (2, 5)]


def test_a_full_disk_at_a_site_refuses_its_merchants_until_there_is_room(tiny_experiment, tmp_path, monkeypatch):
    experiment = tiny_experiment(tmp_path, {**QUICK, **KEPT["private"]})
    grid, poor = FaultyGrid(experiment), sorted(load(experiment.data).merchants)[0]
    with monkeypatch.context() as patched:
        full_disk(patched, lambda path: grid.round == 1 and "/ledgers/" in path and as_file_name(poor) in path)
        folder = grid.run()
    one, two = lines_of(folder)
    assert (one["merchants"], two["merchants"]) == (4, 5)
    assert one["reasons"] == [f"merchant {poor}: its training failed; see the site's log"]
    rounds = {merchant: [charge.round for charge in charges] for merchant, charges in charges_of(folder).items()}
    assert rounds.pop(poor) == [0, 2]  # what was not trained was not paid for
    assert set(map(tuple, rounds.values())) == {(0, 1, 2)}


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one MiB, where this process may make one."""
    place = tmp_path / "small"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("only a user who may mount file systems can have a small disk")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_disk_that_is_really_full_is_told_and_nothing_is_torn(tiny_experiment, tmp_path, small_disk):
    """Weights of 16,384 rows of 8 numbers take half of the disk, so that no second file of them has room there."""
    changes = {**QUICK, "student.options.rows": 16384}
    experiment = tiny_experiment(small_disk, changes)
    with pytest.raises(CheckpointError, match="the disk is full"):
        FaultyGrid(experiment).run()
    run = small_disk / "tiny"
    assert not list(run.rglob("*.tmp"))
    shutil.copytree(run, tmp_path / "roomy" / "tiny")
    there = experiment.with_changes({"runtime.folder": str(tmp_path / "roomy"), "runtime.resume": True})
    whole = FaultyGrid(tiny_experiment(tmp_path / "whole", changes)).run()
    assert student_of(FaultyGrid(there).run()) == student_of(whole)
