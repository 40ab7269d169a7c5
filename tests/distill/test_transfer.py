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
from fed_distill.distill.hints import PARTNERS, POSITIONS, FeatureStudent
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
EMBEDDINGS = torch.randn(COUNT, 2, WIDTH, generator=DRAW)
BESIDE = {
    kind: torch.stack([torch.arange(COUNT).roll(by) for by in range(1, count + 1)], dim=1)
    for kind, count in PARTNERS.items()
}
ANY = ["probabilities", "decoupled", "correlation", "decisions", "hints", "hidden", *PARTNERS]
LAYERED, TOWERS = [*ANY, "attention"], [*ANY, "embeddings"]


def asked(texts):
    count = len(texts)
    return Examples(tuple(texts), ("x",) * count, np.zeros(count, dtype=np.int64), np.arange(count), ("shop",) * count)


PROXY = dataclasses.replace(asked(["red shoe", "tea", "tea cup"] * 3), pairs=("red", "cup", "tea") * 3)


def target(temperature=2.0, **config):
    return DistillationTarget(
        DistillConfig(**config), TASK, LABELS, temperature, Features(STATES, MAPS), BESIDE, EMBEDDINGS
    )


def student(layers=2):
    options = {"rows": 64, "width": 8, "heads": 2, "layers": layers}
    with seeds.scope(0, "student"):
        return build_student("bert-mini", options, TASK)


def towers():
    with seeds.scope(0, "student"):
        return build_student("two-tower", {"rows": 64, "width": 8, "head_width": 6}, TASK)


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


def decoupled(logits, probabilities, temperature, beta):
    """DKD, class by class: T^2 * (TCKD + beta * NCKD) for one example."""
    p, q = ((values / temperature).softmax(dim=0) for values in (probabilities.log(), logits))
    target = int(p.argmax())
    others = [index for index in range(len(p)) if index != target]
    p_rest, q_rest = (1 - values[target] for values in (p, q))
    of_target = p[target] * (p[target] / q[target]).log() + p_rest * (p_rest / q_rest).log()
    of_others = sum(p[at] / p_rest * ((p[at] / p_rest) / (q[at] / q_rest)).log() for at in others)
    return temperature**2 * (of_target + beta * of_others)


def pearson(one, other):
    return torch.corrcoef(torch.stack([one, other]))[0, 1]


def test_all_kinds_are_weighed_and_added():
    weights = {kind: 0.1 * place for place, kind in enumerate(LAYERED, 1)}
    taught = target(transfer=LAYERED, weights=weights, decoupled_beta=3.0, list_temperature=4.0)
    prepared = taught.prepared(student(layers=2), 0, "server")
    logits = torch.randn(COUNT, 3, generator=DRAW)
    hidden = {
        "hints": torch.randn(COUNT, 1, WIDTH, generator=DRAW),
        "hidden": torch.randn(COUNT, 2, WIDTH, generator=DRAW),
        "attention": torch.rand(COUNT, 2, POSITIONS, generator=DRAW),
        "relations": torch.randn(COUNT, 1, 1, generator=DRAW),
        "ranking": torch.randn(COUNT, 1, 1, generator=DRAW),
        "listwise": torch.randn(COUNT, 1, 4, generator=DRAW),
        "contrastive": torch.randn(COUNT, 1, 5, generator=DRAW),
    }
    phase = taught.phase(prepared, 1.0)
    assert phase.hidden
    outputs = Outputs(logits, tuple(hidden[kind] for kind in prepared.kinds))
    log_q = (logits / 2).log_softmax(dim=-1)
    softened = (LABELS.log() / 2).softmax(dim=-1)
    cosines = torch.from_numpy(cosine_similarity(STATES[:, -1].numpy()))
    gain = LABELS[:, 0] + 0.5 * LABELS[:, 1]
    score = (gain / (1 - gain)).log()
    listed = torch.cat([score[:, None], score[BESIDE["listwise"]]], dim=1)
    rows, mapped = torch.arange(COUNT), STATES[:, [1, 3]]  # layers 1 and 2 of 2 go with 2 and 4 of 4
    maps = F.normalize(hidden["attention"], dim=-1) - F.normalize(MAPS[:, [1, 3]], dim=-1)
    terms = {
        "probabilities": 4 * F.kl_div(log_q, softened, reduction="none").sum(dim=1),
        "decoupled": torch.stack([decoupled(one, p, 2.0, 3.0) for one, p in zip(logits, LABELS, strict=True)]),
        "correlation": 4 * torch.stack([1 - pearson(q, p) for q, p in zip(log_q.exp(), softened, strict=True)]),
        "decisions": F.cross_entropy(logits, LABELS.argmax(dim=1), reduction="none"),
        "hints": 0.5 * (hidden["hints"][:, 0] - STATES[:, 1]).square().sum(dim=1),
        "hidden": F.mse_loss(hidden["hidden"], mapped, reduction="none").mean(dim=2).sum(dim=1),
        "attention": 0.5 * maps.square().sum(dim=2).sqrt().sum(dim=1),
        "relations": (hidden["relations"].flatten() - cosines[rows, BESIDE["relations"][:, 0]]).square(),
        "ranking": (hidden["ranking"].flatten() - (score - score[BESIDE["ranking"][:, 0]])).square(),
        "listwise": 16
        * F.kl_div(
            (hidden["listwise"][:, 0] / 4).log_softmax(dim=1), (listed / 4).softmax(dim=1), reduction="none"
        ).sum(dim=1),
        "contrastive": -gain * hidden["contrastive"][:, 0].log_softmax(dim=1)[:, 0],
    }
    expected = sum(weights[kind] * term for kind, term in terms.items())
    torch.testing.assert_close(phase.objective(outputs, phase.references), expected, rtol=1e-4, atol=1e-5)


def test_embeddings_are_compared_as_directions():
    taught = target(transfer=["embeddings"])
    phase = taught.phase(taught.prepared(towers(), 0, "server"), 1.0)
    read = torch.randn(COUNT, 2, WIDTH, generator=DRAW)
    expected = torch.stack([2 - 2 * F.cosine_similarity(read[:, at], EMBEDDINGS[:, at]) for at in (0, 1)]).mean(dim=0)
    torch.testing.assert_close(phase.objective(Outputs(LABELS, (read,)), phase.references), expected)


@pytest.mark.parametrize("kind", ["probabilities", "decoupled", "correlation"])
def test_standardized_logits_make_a_loss_independent_of_shift_and_scale_of_the_students(kind):
    taught, plain = target(transfer=[kind], standardize=True), student()
    phase = taught.phase(plain, 1.0)
    teacher, logits = LABELS.log(), torch.randn(COUNT, 3, generator=DRAW)
    found = phase.objective(Outputs(logits), phase.references)
    torch.testing.assert_close(phase.objective(Outputs(5 * logits + 3), phase.references), found, rtol=1e-4, atol=1e-5)
    aligned = phase.objective(Outputs(0.1 * teacher - 2), phase.references)
    torch.testing.assert_close(aligned, torch.zeros(COUNT), rtol=0, atol=1e-5)
    unstandardized = target(transfer=[kind]).phase(plain, 1.0)
    p, q = (
        (values - values.mean(dim=1, keepdim=True)) / values.std(dim=1, correction=0, keepdim=True)
        for values in (teacher, logits)
    )
    expected = unstandardized.objective(Outputs(q), {"soft_labels": p.softmax(dim=1)})
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_an_assistant_is_standardized_with_its_teacher():
    logits = torch.randn(COUNT, 3, generator=DRAW)
    taught = target(temperature=1.0, standardize=True).following(ABOVE, 1.0)
    phase = taught.phase(student(), 1.0)
    p, q = (
        (values - values.mean(dim=1, keepdim=True)) / values.std(dim=1, correction=0, keepdim=True)
        for values in (ABOVE.log(), logits)
    )
    expected = -(p.softmax(dim=1) * q.log_softmax(dim=1)).sum(dim=1)
    torch.testing.assert_close(phase.objective(Outputs(logits), phase.references), expected, rtol=1e-4, atol=1e-5)


def test_votes_without_doubt_give_bounded_scores():
    votes = F.one_hot(torch.arange(COUNT) % 3, 3).float()
    taught = target(transfer=["ranking", "contrastive"]).with_soft_labels(votes)
    references = taught.references(taught.prepared(student(), 0, "server"))
    assert float(references["ranking"].abs().max()) < 30
    torch.testing.assert_close(references["contrastive"], votes[:, 0] + votes[:, 1] / 2, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("kinds", "plain"), [(LAYERED, student), (TOWERS, towers)])
def test_the_order_of_the_kinds_makes_no_difference(kinds, plain):
    logits = torch.randn(COUNT, 3, generator=DRAW)
    found = []
    for ordered in (kinds, kinds[::-1]):
        taught = target(transfer=ordered)
        prepared = taught.prepared(plain(), 0, "server")
        assert isinstance(prepared, FeatureStudent)
        encoded = prepared.with_partners(prepared.encode(PROXY.texts, PROXY.pairs), PROXY)
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
    taught = target(temperature=1.0, assistants=[{"model": "lstm"}], assistant_weight=0.5).below(ABOVE)
    phase = taught.phase(student(), 1.0)
    log_q = logits.log_softmax(dim=-1)
    divergence = F.kl_div(log_q, LABELS, reduction="none").sum(dim=1)
    expected = divergence - 0.5 * (ABOVE * log_q).sum(dim=1)
    torch.testing.assert_close(phase.objective(Outputs(logits), phase.references), expected, rtol=1e-4, atol=1e-5)


def test_an_assistant_follows_the_level_above_it_alone():
    logits = torch.randn(COUNT, 3, generator=DRAW)
    plain = student()
    taught = target(temperature=1.0, transfer=LAYERED, weights={"hints": 3.0}).following(ABOVE, 0.25)
    assert taught.prepared(plain, 0, "assistant") is plain
    phase = taught.phase(plain, 1.0)
    expected = -0.25 * (ABOVE * logits.log_softmax(dim=-1)).sum(dim=1)
    torch.testing.assert_close(phase.objective(Outputs(logits), phase.references), expected, rtol=1e-4, atol=1e-5)


queries = st.lists(st.sampled_from(["tea", "shoe", "lamp", "bag"]), min_size=1, max_size=30)


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
    assert found.shape == (len(texts), 3)
    for row, others in enumerate(found.tolist()):
        same = {place for place, text in enumerate(texts) if text == texts[row] and place != row}
        assert len(set(others) & same) == min(len(same), 3)
        assert set(others) <= (same or {row})


@pytest.mark.parametrize("kind", ["ranking", "listwise"])
def test_a_proxy_set_without_two_candidates_of_a_query_is_refused(kind):
    with pytest.raises(DataError, match=f"{kind} compares products of a query, and no two of the 3 proxy examples"):
        partners([kind], asked(["tea", "shoe", "lamp"]), 0)


titles = st.lists(st.tuples(st.sampled_from(["tea", "shoe"]), st.sampled_from("abcd")), min_size=2, max_size=30)


@given(titles, st.integers(0, 5))
def test_negatives_are_second_texts_that_are_no_candidates_of_the_query(drawn, seed):
    texts, pairs = zip(*drawn, strict=True)
    own = {text: {pair for one, pair in drawn if one == text} for text in texts}
    assume(all(candidates != set(pairs) for candidates in own.values()))
    proxy = dataclasses.replace(asked(texts), pairs=pairs)
    found = partners(["contrastive"], proxy, seed)["contrastive"]
    assert found.shape == (len(texts), 4)
    assert not any(pairs[row] in own[text] for text, rows in zip(texts, found.tolist(), strict=True) for row in rows)


def test_negatives_vary_within_an_example_and_between_examples():
    proxy = dataclasses.replace(asked([f"query {row}" for row in range(60)]), pairs=tuple(map(str, range(60))))
    found = partners(["contrastive"], proxy, 0)["contrastive"]
    assert len(found.unique()) > 50
    assert len({tuple(row) for row in found.tolist()}) == 60


def test_a_proxy_set_of_one_query_has_no_negatives():
    with pytest.raises(DataError, match=r"contrastive requires second texts of other queries.*candidates of 'tea'"):
        partners(["contrastive"], dataclasses.replace(asked(["tea"] * 3), pairs=("a", "b", "c")), 0)


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


TWO = Task("pairs", ("no", "yes"), pair=True, positive="yes")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"transfer": ["decoupled"]}, "transfer: decoupled requires three classes, and task pairs has two"),
        ({"transfer": ["correlation"]}, "transfer: correlation requires three classes, and task pairs has two"),
        ({"standardize": True}, "standardize requires three classes, and task pairs has two"),
    ],
)
def test_what_two_classes_cannot_transfer_is_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        check_transfer(DistillConfig(**config), TWO, student())
    check_transfer(DistillConfig(**config), TASK, student())


def test_contrastive_needs_two_texts_but_no_grades():
    config = DistillConfig(transfer=["contrastive"])
    with seeds.scope(0, "student"):
        options = {"rows": 64, "width": 8, "head_width": 6}
        single, paired = (build_student("two-tower", options, dataclasses.replace(TWO, pair=pair)) for pair in (0, 1))
    check_transfer(config, TWO, paired)
    with pytest.raises(ConfigError, match="contrastive compares pairs of texts, and task pairs has one text"):
        check_transfer(config, dataclasses.replace(TWO, pair=False), single)
    labels = torch.tensor([[0.8, 0.2], [0.5, 0.5]])
    taught = DistillationTarget(
        config, TWO, labels, 1.0, partners={"contrastive": torch.zeros(2, 4, dtype=torch.int64)}
    )
    references = taught.references(taught.prepared(paired, 0, "server"))
    torch.testing.assert_close(references["contrastive"], torch.tensor([0.2, 0.5]))


@pytest.mark.parametrize("kind", ["ranking", "listwise"])
def test_ranking_needs_grades(kind):
    ungraded = dataclasses.replace(TASK, gains=None)
    with pytest.raises(ConfigError, match=f"{kind} requires graded products of a query, which task toy does not have"):
        check_transfer(DistillConfig(transfer=[kind]), ungraded, student())
    check_transfer(DistillConfig(transfer=["hints"]), ungraded, student())


@pytest.mark.parametrize("kind", [*TOWERS, "attention"])
def test_a_target_that_reads_no_soft_labels_is_known(kind):
    """A student that is taught anew with merchants' soft labels hears them where a loss reads them, and only there."""
    taught, found = target(transfer=[kind]), []
    prepared = taught.prepared(towers() if kind == "embeddings" else student(), 0, "server").eval()
    encoded = prepared.encode(PROXY.texts, PROXY.pairs)
    if isinstance(prepared, FeatureStudent):
        encoded = prepared.with_partners(encoded, PROXY)
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
        ({"list_temperature": 2.0}, "list_temperature has no effect with transfer"),
        ({"decoupled_beta": 8.0}, "decoupled_beta has no effect with transfer"),
        ({"transfer": ["decisions"], "standardize": True}, "standardize has no effect with transfer"),
        ({"transfer": ["hints"], "final_temperature": 2.0}, "final_temperature has no effect with transfer"),
    ],
)
def test_a_table_that_makes_no_sense_is_refused(config, message):
    with pytest.raises((ValueError, FedDistillError), match=message):
        DistillConfig(**config)
