"""FedMKT: each side learns of each example from who has the least cross-entropy with its label, if it is less."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy, kl_div

from fed_distill.errors import ConfigError, UplinkRejected
from fed_distill.methods.base import replace
from fed_distill.methods.fedmkt import FedMKT, SurestAnswers
from fed_distill.payloads.soft_labels import SoftLabels
from fed_distill.transport.messages import Uplink

CLASSES = 4


@pytest.fixture
def several(state):
    """40 proxy examples: a teacher that is sure of some, and five merchants, of whom one is never sure."""
    draw = torch.Generator().manual_seed(5)
    logits = torch.randn(6, 40, CLASSES, generator=draw) * torch.tensor([2.0, 1.0, 2.0, 3.0, 0.1, 2.0]).view(6, 1, 1)
    teacher, *merchants = logits.softmax(dim=-1)
    told = [Uplink(f"m{place}", 10**place, (SoftLabels(one),)) for place, one in enumerate(merchants)]
    return replace(state, teacher_labels=teacher), told


def by_hand(teacher, told, share):
    """Of each example the label, the soft labels of whoever has the least loss, and whether that is a merchant."""
    found = []
    for example, own in enumerate(teacher):
        says = [one.need(SoftLabels).probabilities[example] for one in told]
        label = int((share * own + (1 - share) * torch.stack(says).mean(dim=0)).argmax())
        losses = [float(-one[label].log()) for one in says]
        best = min(range(len(says)), key=losses.__getitem__)
        merchant = losses[best] < float(-own[label].log())
        found.append((label, says[best] if merchant else own, merchant))
    return found


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_of_each_example_whoever_knows_its_label_best_is_learned_from(several, share, server):
    state, told = several
    merged = FedMKT(teacher_share=share, teacher_epochs=3).merge(state, iter(told), server)
    expected = by_hand(state.teacher_labels, told, share)
    chosen = torch.tensor([merchant for _, _, merchant in expected])
    assert 0 < chosen.sum() < len(chosen)
    assert merged.round == 5
    torch.testing.assert_close(merged.consensus, torch.stack([says for _, says, _ in expected]))
    (taught,) = server.teacher_plans[-1].phases
    assert (taught.data, taught.epochs) == ("proxy", 3)
    assert torch.equal(taught.references["example_weights"] > 0, chosen)
    assert float(taught.references["example_weights"].mean()) == pytest.approx(1.0)
    assert torch.equal(taught.references["soft_labels"], merged.consensus)
    assert torch.equal(merged.weights["w"], merged.consensus)  # what the student was taught


def test_the_teacher_loses_by_the_chosen_examples_alone(several, loss_of, server):
    state, told = several
    FedMKT().merge(state, told, server)
    (phase,) = server.teacher_plans[-1].phases
    logits = torch.randn(40, CLASSES, generator=torch.Generator().manual_seed(6))
    weights = phase.references["example_weights"]
    apart = kl_div(logits.log_softmax(dim=-1), phase.references["soft_labels"], reduction="none").sum(dim=-1)
    torch.testing.assert_close(loss_of(phase, logits), weights * apart)


def test_the_mean_of_the_merchants_is_not_the_surest_of_them(several, server):
    """By hand: of each example the mean, where it has less loss at the label than the teacher."""
    state, told = several
    merged = FedMKT(choose="mean", teacher_share=0.5).merge(state, iter(told), server)
    mean = torch.stack([one.need(SoftLabels).probabilities for one in told]).mean(dim=0)
    expected = []
    for own, theirs in zip(state.teacher_labels, mean, strict=True):
        label = int((own + theirs).argmax())
        expected.append(theirs if theirs[label] > own[label] else own)
    torch.testing.assert_close(merged.consensus, torch.stack(expected))
    learned = (merged.consensus != state.teacher_labels).any(dim=1)
    surest = FedMKT(teacher_share=0.5).merge(state, iter(told), server).consensus
    assert 0 < learned.sum() < (surest != state.teacher_labels).any(dim=1).sum()


def test_the_teacher_learns_the_servers_labels_before_it_distils(several, server):
    state, told = several
    FedMKT(label_epochs=2, teacher_epochs=3).merge(state, told, server)
    labels, distil = server.teacher_plans[-1].phases
    assert [(one.data, one.epochs) for one in (labels, distil)] == [("private", 2), ("proxy", 3)]
    assert not labels.references


def test_a_teacher_who_knows_everything_best_learns_nothing(several, server):
    state, told = several
    sure = torch.eye(CLASSES)[torch.arange(40) % CLASSES]
    merged = FedMKT(teacher_share=1.0).merge(replace(state, teacher_labels=sure), told, server)
    assert not server.teacher_plans
    assert torch.equal(merged.consensus, sure)


def test_a_merchant_learns_where_the_teacher_has_less_loss(several, loss_of):
    state, _ = several
    method = FedMKT(digest_epochs=2, local_epochs=3)
    down = method.broadcast(state)
    assert down.need(SoftLabels).probabilities is state.teacher_labels
    digest, revisit = method.plan(down).phases
    assert [(one.data, one.epochs) for one in (digest, revisit)] == [("proxy", 2), ("private", 3)]
    logits = torch.randn(40, CLASSES, generator=torch.Generator().manual_seed(7)) * 3
    losses, learned = loss_of(digest, logits), 0
    for example, own in enumerate(state.teacher_labels):
        label = own.argmax()
        expected = torch.zeros(())
        if -own[label].log() < cross_entropy(logits[example], label):
            learned += 1
            expected = kl_div(logits[example].log_softmax(dim=-1), own, reduction="sum")
        torch.testing.assert_close(losses[example], expected)
    assert 0 < learned < 40


def test_who_is_best_does_not_depend_on_who_comes_first_but_for_equals():
    same = torch.tensor([[0.6, 0.4]])
    for order in ([same, torch.tensor([[0.5, 0.5]])], [torch.tensor([[0.5, 0.5]]), same]):
        best = SurestAnswers(1, 2)
        assert len(list(best.noting(Uplink("m", 1, (SoftLabels(one),)) for one in order))) == 2
        assert torch.equal(best.of(torch.tensor([0])), same)
        assert torch.equal(best.of(torch.tensor([1])), torch.tensor([[0.5, 0.5]]))


def test_a_merge_without_soft_labels_is_refused(several, server):
    state, told = several
    with pytest.raises(UplinkRejected, match="no merchant sent soft labels"):
        FedMKT().merge(state, [replace(one, payloads=()) for one in told], server)


QUICK = {"controls": [], "adaptation.enabled": False, "data.max_merchants": 3, "teacher.learning_rate": 0.005}


def test_a_run_has_its_teacher_learn_and_leaves_it_to_others_as_it_was(tiny_experiment, simulate, tmp_path):
    """``fedavg-kd`` beside it hears the same teacher, before and after."""
    mutual, plain = ({**QUICK, "federation.method": name, "federation.options": {}} for name in ("fedmkt", "fedavg-kd"))
    folder, _ = simulate(tiny_experiment(tmp_path / "both", {**mutual, "compare": [{"method": "fedavg-kd"}]}))
    alone, _ = simulate(tiny_experiment(tmp_path / "alone", plain))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    heard = [line["valid_teacher"]["auc"] for line in lines if line.get("federation") == "fedmkt"]
    assert len(heard) == 2 and heard[0] != heard[1]
    assert all("valid_teacher" not in line for line in lines if line.get("federation") == "fedavg-kd")
    kept = load_file(folder / "checkpoint" / "seed-0" / "federations" / "fedmkt" / "rounds.safetensors")
    assert any(name.startswith("teacher/network.") for name in kept)
    ends = [
        load_file(one / "checkpoint" / "seed-0" / "federations" / "fedavg-kd" / "final.safetensors")
        for one in (folder, alone)
    ]
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def test_several_teachers_are_refused_before_anything_is_trained(tiny_experiment, simulate, tmp_path):
    changes = {**QUICK, "federation.method": "fedmkt", "federation.options": {}, "teacher.domains": 2}
    with pytest.raises(ConfigError, match="fedmkt teaches one teacher: drop"):
        simulate(tiny_experiment(tmp_path, changes))


def test_nothing_is_sent_before_private_pre_training(several):
    state, _ = several
    method = FedMKT(pretrain_epochs=2.0)
    assert method.broadcast(replace(state, round=0)).payloads == ()
    assert method.broadcast(replace(state, round=1)).need(SoftLabels).probabilities is state.teacher_labels
