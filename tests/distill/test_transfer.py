"""A target: its losses are the weighted sum of the papers' formulas, with the teacher's side of each kind."""

import dataclasses
from collections import defaultdict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn.metrics.pairwise import cosine_similarity

from fed_distill import seeds
from fed_distill.config import DistillConfig
from fed_distill.data.examples import Examples, Task
from fed_distill.distill.features import Features
from fed_distill.distill.hints import LIST, POSITIONS, FeatureStudent
from fed_distill.distill.losses import distillation_kl, soften
from fed_distill.distill.transfer import DistillationTarget, check_soft_label_transfer, check_transfer, lone, partners
from fed_distill.errors import ConfigError, DataError, FedDistillError
from fed_distill.models import build_student
from fed_distill.models.base import Outputs

TASK = Task("toy", ("same", "near", "far"), pair=True, positive="same", gains=(1.0, 0.5, 0.0))
DRAW = seeds.torch_stream(0, "target")
COUNT, LAYERS, WIDTH = 9, 4, 6
LABELS = torch.randn(COUNT, 3, generator=DRAW).softmax(dim=-1)
STATES = torch.randn(COUNT, LAYERS, WIDTH, generator=DRAW)
MAPS = torch.rand(COUNT, LAYERS, POSITIONS, generator=DRAW)
ABOVE = torch.randn(COUNT, 3, generator=DRAW).softmax(dim=-1)
PARTNERS = {
    "relations": torch.arange(COUNT).roll(-1)[:, None],
    "ranking": torch.arange(COUNT).roll(2)[:, None],
    "listwise": torch.stack([torch.arange(COUNT).roll(by) for by in range(1, LIST)], dim=1),
}
ALL = ["probabilities", "decisions", "hints", "hidden", "attention", "relations", "ranking", "listwise"]


def target(temperature=2.0, **config):
    return DistillationTarget(DistillConfig(**config), TASK, LABELS, temperature, Features(STATES, MAPS), PARTNERS)


def student(layers=2):
    options = {"rows": 64, "width": 8, "heads": 2, "layers": layers}
    with seeds.scope(0, "student"):
        return build_student("bert-mini", options, TASK)


def test_by_default_a_student_learns_probabilities_as_it_is():
    taught, plain = target(), student()
    assert taught.prepared(plain, 0, "server") is plain
    phase = taught.phase(plain, 1.5)
    assert (phase.data, phase.epochs, phase.hidden) == ("proxy", 1.5, False)
    assert phase.references.keys() == {"soft_labels"}
    logits = torch.randn(COUNT, 3, generator=DRAW)
    expected = distillation_kl(logits, soften(LABELS, 2.0), 2.0)
    assert torch.equal(phase.objective(Outputs(logits), phase.references), expected)


def test_without_a_kind_the_last_assistant_is_the_teacher_and_in_one_step_the_teacher_itself():
    """Mirzadeh et al. 2020: KL with the level above at the temperature, times its square, and nothing else."""
    alone, plain = target(transfer=[], assistants=[{}], assistant_weight=3.0), student()
    logits = torch.randn(COUNT, 3, generator=DRAW)
    below = alone.below(ABOVE).phase(plain, 1.0)
    assert torch.equal(below.references["soft_labels"], ABOVE)
    softened = (ABOVE.log() / 2.0).softmax(dim=-1)
    divergence = (softened * (softened.log() - (logits / 2.0).log_softmax(dim=-1))).sum(dim=-1)
    assert torch.allclose(below.objective(Outputs(logits), below.references), 3.0 * 4.0 * divergence, atol=1e-5)
    one_step = alone.phase(plain, 1.0)
    default = target().phase(plain, 1.0).objective(Outputs(logits), one_step.references)
    assert torch.equal(one_step.objective(Outputs(logits), one_step.references), default)


def test_all_kinds_are_weighed_and_added():
    weights = {kind: 0.1 * place for place, kind in enumerate(ALL, 1)}
    taught = target(transfer=ALL, weights=weights)
    prepared = taught.prepared(student(layers=2), 0, "server")
    logits = torch.randn(COUNT, 3, generator=DRAW)
    hidden = {
        "hints": torch.randn(COUNT, 1, WIDTH, generator=DRAW),
        "hidden": torch.randn(COUNT, 2, WIDTH, generator=DRAW),
        "attention": torch.rand(COUNT, 2, POSITIONS, generator=DRAW),
        "relations": torch.randn(COUNT, 1, 1, generator=DRAW),
        "ranking": torch.randn(COUNT, 1, 1, generator=DRAW),
        "listwise": torch.randn(COUNT, 1, LIST, generator=DRAW),
    }
    phase = taught.phase(prepared, 1.0)
    assert phase.hidden
    outputs = Outputs(logits, tuple(hidden[kind] for kind in prepared.kinds))
    log_q = (logits / 2).log_softmax(dim=-1)
    softened = (LABELS.log() / 2).softmax(dim=-1)
    cosines = torch.from_numpy(cosine_similarity(STATES[:, -1].numpy()))
    score = LABELS[:, 0] + 0.5 * LABELS[:, 1]
    listed = torch.cat([score[:, None], score[PARTNERS["listwise"]]], dim=1)
    rows, mapped = torch.arange(COUNT), STATES[:, [1, 3]]  # layers 1 and 2 of 2 go with 2 and 4 of 4
    maps = F.normalize(hidden["attention"], dim=-1) - F.normalize(MAPS[:, [1, 3]], dim=-1)
    terms = {
        "probabilities": 4 * F.kl_div(log_q, softened, reduction="none").sum(dim=1),
        "decisions": F.cross_entropy(logits, LABELS.argmax(dim=1), reduction="none"),
        "hints": 0.5 * (hidden["hints"][:, 0] - STATES[:, 1]).square().sum(dim=1),
        "hidden": F.mse_loss(hidden["hidden"], mapped, reduction="none").mean(dim=2).sum(dim=1),
        "attention": 0.5 * maps.square().sum(dim=2).sqrt().sum(dim=1),
        "relations": (hidden["relations"].flatten() - cosines[rows, PARTNERS["relations"][:, 0]]).square(),
        "ranking": (hidden["ranking"].flatten() - (score - score[PARTNERS["ranking"][:, 0]])).square(),
        "listwise": F.kl_div(hidden["listwise"][:, 0].log_softmax(dim=1), listed.softmax(dim=1), reduction="none").sum(
            dim=1
        ),
    }
    expected = sum(weights[kind] * term for kind, term in terms.items())
    torch.testing.assert_close(phase.objective(outputs, phase.references), expected, rtol=1e-4, atol=1e-5)


def test_the_order_of_the_kinds_makes_no_difference():
    logits = torch.randn(COUNT, 3, generator=DRAW)
    found = []
    for kinds in (ALL, ALL[::-1]):
        taught = target(transfer=kinds)
        prepared = taught.prepared(student(), 0, "server")
        assert isinstance(prepared, FeatureStudent)
        encoded = prepared.with_partners(prepared.encode(["red shoe", "tea", "tea cup"] * 3, ["red", "cup", "tea"] * 3))
        phase = taught.phase(prepared, 1.0)
        outputs = prepared.eval()(prepared.collate(encoded, torch.arange(COUNT)), hidden=True)
        found.append(phase.objective(dataclasses.replace(outputs, logits=logits), phase.references).detach())
    # projections are drawn alike whatever the order
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)


def test_projections_are_drawn_by_seed_and_purpose():
    def hint(seed, *purpose):
        return target(transfer=["hints"]).prepared(student(), seed, *purpose).hint.weight

    assert torch.equal(hint(0, "server"), hint(0, "server"))
    assert not torch.equal(hint(0, "server"), hint(1, "server"))
    assert not torch.equal(hint(0, "server"), hint(0, "pooled"))


def test_the_temperature_moves_along_a_line_to_the_final_one():
    moving = target(temperature=5.0, final_temperature=1.0)
    assert [moving.at(done).temperature for done in (0.0, 0.5, 1.0)] == [5.0, 3.0, 1.0]
    assert target(temperature=5.0).at(1.0).temperature == 5.0


def test_other_soft_labels_may_have_a_temperature_of_their_own_throughout():
    moving, others = target(temperature=5.0, final_temperature=1.0), torch.ones(2, 2)
    assert moving.with_soft_labels(others).at(0.5).temperature == 3.0
    assert moving.with_soft_labels(others, 2.5).at(0.5).temperature == 2.5
    assert torch.equal(moving.with_soft_labels(others, 2.5).soft_labels, others)


def test_a_student_below_an_assistant_learns_from_both():
    logits = torch.randn(COUNT, 3, generator=DRAW)
    taught = target(temperature=1.0, assistant_weight=0.5).below(ABOVE)
    phase = taught.phase(student(), 1.0)
    log_q = logits.log_softmax(dim=-1)
    divergence = F.kl_div(log_q, LABELS, reduction="none").sum(dim=1)
    expected = divergence - 0.5 * (ABOVE * log_q).sum(dim=1)
    torch.testing.assert_close(phase.objective(Outputs(logits), phase.references), expected, rtol=1e-4, atol=1e-5)


def test_an_assistant_follows_the_level_above_it_alone():
    logits = torch.randn(COUNT, 3, generator=DRAW)
    plain = student()
    taught = target(temperature=1.0, transfer=ALL, weights={"hints": 3.0}).following(ABOVE, 0.25)
    assert taught.prepared(plain, 0, "assistant") is plain
    phase = taught.phase(plain, 1.0)
    expected = -0.25 * (ABOVE * logits.log_softmax(dim=-1)).sum(dim=1)
    torch.testing.assert_close(phase.objective(Outputs(logits), phase.references), expected, rtol=1e-4, atol=1e-5)


queries = st.lists(st.sampled_from(["tea", "shoe", "lamp", "bag"]), min_size=1, max_size=30)


def asked(texts):
    count = len(texts)
    return Examples(tuple(texts), ("x",) * count, np.zeros(count, dtype=np.int64), np.arange(count), ("shop",) * count)


@given(queries, st.integers(0, 5))
def test_partners_in_ranking_are_candidates_of_the_same_query_and_others_where_there_are_any(texts, seed):
    assume(len(set(texts)) < len(texts))
    found = partners(["ranking"], asked(texts), seed)["ranking"].flatten().tolist()
    assert sorted(found) == list(range(len(texts)))
    for row, partner in enumerate(found):
        assert texts[row] == texts[partner]
        assert (row == partner) == (texts.count(texts[row]) == 1)


@given(queries, st.integers(0, 5))
def test_partners_in_a_list_are_other_candidates_of_the_query_all_of_them_where_there_are_few(texts, seed):
    assume(len(set(texts)) < len(texts))
    found = partners(["listwise"], asked(texts), seed)["listwise"]
    assert found.shape == (len(texts), LIST - 1)
    for row, others in enumerate(found.tolist()):
        same = {place for place, text in enumerate(texts) if text == texts[row] and place != row}
        assert len(set(others) & same) == min(len(same), LIST - 1)
        assert set(others) <= (same or {row})


@pytest.mark.parametrize("kind", ["ranking", "listwise"])
def test_a_proxy_set_without_two_candidates_of_a_query_is_refused(kind):
    with pytest.raises(DataError, match=f"{kind} compares products of a query, and no two of the 3 proxy examples"):
        partners([kind], asked(["tea", "shoe", "lamp"]), 0)


def test_examples_that_are_their_querys_only_ones_are_counted():
    assert lone(asked(["tea", "shoe", "tea", "lamp"])) == 2


@given(st.integers(2, 40), st.integers(0, 5))
def test_in_relations_everybody_is_somebody_elses_partner(count, seed):
    found = partners(["relations"], asked(["tea"] * count), seed)["relations"].flatten().tolist()
    assert sorted(found) == list(range(count))
    assert all(row != partner for row, partner in enumerate(found))


def test_partners_are_drawn_by_seed():
    proxy, drawn = asked(["tea"] * 50), defaultdict(set)
    for seed in (0, 0, 1):
        for kind, rows in partners(["relations", "ranking", "listwise"], proxy, seed).items():
            drawn[kind].add(tuple(rows.flatten().tolist()))
    assert [len(found) for found in drawn.values()] == [2, 2, 2]
    assert partners(["probabilities"], proxy, 0) == {}


@pytest.mark.parametrize("kind", ["ranking", "listwise"])
def test_ranking_needs_grades(kind):
    ungraded = dataclasses.replace(TASK, gains=None)
    with pytest.raises(ConfigError, match=f"{kind} requires graded products of a query, which task toy does not have"):
        check_transfer(DistillConfig(transfer=[kind]), ungraded, student())
    check_transfer(DistillConfig(transfer=["hints"]), ungraded, student())


@pytest.mark.parametrize("kind", ALL)
def test_a_target_that_reads_no_soft_labels_is_known(kind):
    """A student that is taught anew with merchants' soft labels hears them where a loss reads them, and only there."""
    taught, found = target(transfer=[kind]), []
    prepared = taught.prepared(student(), 0, "server").eval()
    encoded = prepared.encode(["red shoe", "tea", "tea cup"] * 3, ["red", "cup", "tea"] * 3)
    if isinstance(prepared, FeatureStudent):
        encoded = prepared.with_partners(encoded)
    for said in (taught, taught.with_soft_labels(LABELS.flip(0))):
        phase = said.phase(prepared, 1.0)
        found.append(
            phase.objective(phase.run(prepared, prepared.collate(encoded, torch.arange(COUNT))), phase.references)
        )
    if torch.equal(*found):
        with pytest.raises(ConfigError, match=r"distill\.transfer has no kind that uses soft labels"):
            check_soft_label_transfer(taught.config)
    else:
        check_soft_label_transfer(taught.config)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"transfer": ["hints", "hints"]}, "names hints twice"),
        ({"weights": {"hints": 1.0}}, "hints, which is not in transfer"),
        ({"transfer": []}, "transfer is empty"),
        ({"transfer": [], "assistants": [{}], "hard_weight": 0.5}, "hard_weight below 1 requires the teacher's labels"),
        ({"hard_weight": 1.5}, "less than or equal to 1"),
    ],
)
def test_a_table_that_makes_no_sense_is_refused(config, message):
    with pytest.raises((ValueError, FedDistillError), match=message):
        DistillConfig(**config)
