"""Merchants that send what cannot be merged are left out and counted; when they are most, the run ends."""

import json

import numpy as np
import pytest
from flwr.app import Array

from fed_distill.errors import TrainingError
from fed_distill.merchant.app import build_app
from fed_distill.transport.requests import EVALUATE, TRAIN

CHANGES = {"controls": ["server"], "adaptation.enabled": False}


def deviating(tamper, byzantine, seen):
    """The honest app, with the uplinks of the first ``byzantine`` merchants tampered with."""
    inner = build_app()

    def app(message, context):
        reply = inner(message, context)
        if message.metadata.message_type == TRAIN:
            for place in range(byzantine):
                seen.append(reply.content[f"{place}/up"]["merchant"])
                tamper(reply.content, f"{place}/")
        return reply

    return app


def replaced(name, make):
    def tamper(content, prefix):
        record = content[f"{prefix}up.update"]
        record[name] = Array(make(record[name].numpy()))

    return tamper


def as_somebody_else(content, prefix):
    content[f"{prefix}up"]["merchant"] = "merchant-of-nowhere"


def with_too_many_examples(content, prefix):
    content[f"{prefix}up"]["examples"] = 2**40


def without_update(content, prefix):
    for name in ("up.update", "up.rows", "up.counts"):
        del content[f"{prefix}{name}"]


LIES = {
    "nan": (replaced("head.0.bias", lambda value: value * np.nan), "head.0.bias has values that are not finite"),
    "inf": (replaced("head.0.bias", lambda value: value + np.inf), "head.0.bias has values that are not finite"),
    "norm": (replaced("head.0.bias", lambda value: value + np.float32(1e6)), "its update has a norm of 2.83e+06, and"),
    "shape": (replaced("head.0.bias", lambda value: value[:-1]), "head.0.bias has shape [7], not [8]"),
    "examples": (with_too_many_examples, "training examples, but announced"),
    "nothing": (without_update, "the parts of its uplink differ from those of most merchants"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_byzantine_merchant_is_counted_as_rejected_and_the_run_ends_well(tiny_experiment, simulate, tmp_path, lie):
    tamper, reason = LIES[lie]
    seen = []
    folder, _ = simulate(tiny_experiment(tmp_path, CHANGES), app=deviating(tamper, 1, seen))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(line["merchants"], line["rejected"]) for line in lines] == [(4, 1), (4, 1)]
    assert all(reason in line["reasons"][0] for line in lines)
    assert len(set(seen)) == 1
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert seen[0] in summary["by_merchant"]["counts"]


def test_who_answers_as_another_is_told_as_its_site_and_as_a_merchant_that_is_missing(
    tiny_experiment, simulate, tmp_path
):
    seen = []
    folder, _ = simulate(tiny_experiment(tmp_path, CHANGES), app=deviating(as_somebody_else, 1, seen))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    reasons = [
        "site 2 sent unrequested answers; dropped: 1",
        f"merchant {seen[0]}: site 2 sent no answer for it",
    ]
    assert [(line["merchants"], line["reasons"]) for line in lines] == [(4, reasons)] * 2


def test_a_byzantine_majority_ends_the_run_with_the_first_reason(tiny_experiment, simulate, tmp_path):
    tamper, _ = LIES["nan"]
    seen = []
    with pytest.raises(
        TrainingError, match=r"round 1: only 2 of 5 merchants can be merged; merchant .*: head\.0\.bias"
    ):
        simulate(tiny_experiment(tmp_path, CHANGES), app=deviating(tamper, 3, seen))
    assert not (tmp_path / "tiny" / "summary.json").exists()


def test_impossible_test_counts_leave_the_merchant_out_of_the_tables(tiny_experiment, simulate, tmp_path):
    inner, byzantine = build_app(), []

    def app(message, context):
        reply = inner(message, context)
        if message.metadata.message_type == EVALUATE:
            counts = reply.content["counts"]
            byzantine.append(next(iter(counts)))
            counts[byzantine[-1]] = [7, 3]
        return reply

    folder, _ = simulate(tiny_experiment(tmp_path, CHANGES), app=app)
    counts = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["by_merchant"]["counts"]
    assert len(set(byzantine)) == 1
    assert len(counts) == 4
    assert byzantine[0] not in counts
