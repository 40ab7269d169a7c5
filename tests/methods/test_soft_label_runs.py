"""Methods on soft labels in whole runs: every merchant is merged in every round, for as few bytes as is meant."""

import json

import pytest
import torch
from safetensors.torch import load_file

BASE = {"controls": [], "adaptation.enabled": False, "federation.options": {}}


@pytest.fixture(scope="module")
def rounds_of(tiny_experiment, simulate, tmp_path_factory):
    """A function: the rounds of a federation with a method and its options, as they were recorded."""

    def run(method, **options):
        changes = {**BASE, "federation.method": method, "federation.options": options}
        folder, _ = simulate(tiny_experiment(tmp_path_factory.mktemp(method), changes))
        text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]

    return run


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("dsfl", {}),
        ("cronus", {}),
        ("selective-fd", {"max_entropy": 0.99}),
        ("fedet", {}),
        ("fedmkt", {}),
        ("fd", {}),
        ("selective-fd-kulsif", {"max_entropy": 0.99}),
        ("expert-fd", {}),
    ],
)
def test_every_merchant_is_merged_in_every_round(rounds_of, method, options):
    rounds = rounds_of(method, **options)
    assert [(line["round"], line["merchants"], line["rejected"]) for line in rounds] == [(1, 5, 0), (2, 5, 0)]


def test_the_global_student_learns_from_every_round(tiny_experiment, simulate, tmp_path):
    students = []
    for rounds in (1, 2):
        changes = {**BASE, "name": f"of-{rounds}", "federation.method": "fedmd", "federation.rounds": rounds}
        folder, _ = simulate(tiny_experiment(tmp_path, changes))
        students.append(load_file(folder / "student" / "model.safetensors"))
    assert any(not torch.equal(value, students[1][name]) for name, value in students[0].items())


def test_a_student_that_goes_on_is_another_than_one_that_is_distilled_anew(tiny_experiment, simulate, tmp_path):
    """From the last student also where soft labels are the same: those of the teacher alone."""
    students = {}
    for onwards in (False, True):
        options = {"teacher_share": 1.0, "onwards": onwards, "pretrain_epochs": 2.0}
        changes = {**BASE, "name": f"on-{onwards}", "federation.method": "fedmd", "federation.options": options}
        folder, _ = simulate(tiny_experiment(tmp_path, changes))
        students[onwards] = load_file(folder / "student" / "model.safetensors")
    assert any(not torch.equal(value, students[True][name]) for name, value in students[False].items())


def test_with_the_teacher_alone_the_global_student_is_the_servers_own(tiny_experiment, simulate, tmp_path):
    """To the bit: nothing but the soft labels distinguishes the two."""
    options = {"federation.method": "fedmd", "federation.options": {"teacher_share": 1.0}}
    folder, _ = simulate(tiny_experiment(tmp_path, {**BASE, **options, "controls": ["server"]}))
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    student, server = summary["student"], summary["controls"]["server"]
    assert [student[name] for name in ("accuracy", "auc", "ndcg@10")] == [
        server[name] for name in ("accuracy", "auc", "ndcg@10")
    ]


def test_answers_that_are_kept_back_are_not_sent(rounds_of):
    """40 proxy examples of 4 float32 probabilities: 640 bytes less than all of them for none, 480 for a quarter."""
    some, every = (rounds_of("selective-fd", answer_share=share)[0]["bytes"]["uplink"] for share in (0.25, 1.0))
    assert every - some == pytest.approx(480, abs=4)  # the shape in an npy header is a digit shorter


def test_answers_of_experts_take_a_byte_and_a_bit_more_than_their_soft_labels(rounds_of):
    """10 of 40 proxy examples: 160 bytes of soft labels, 10 of expertise, 5 of the mask and 3 npy headers."""
    some, every = (rounds_of("expert-fd", answer_share=share)[0]["bytes"]["uplink"] for share in (0.25, 1.0))
    assert every - some == pytest.approx(30 * 17, abs=5)


def test_class_means_take_fewer_bytes_than_soft_labels(rounds_of):
    """40 proxy examples are ten times the four classes."""
    means, labels = rounds_of("fd")[1]["bytes"], rounds_of("fedmd")[1]["bytes"]
    assert means["uplink"] < labels["uplink"]
    assert means["downlink"] < labels["downlink"]
