"""What is read of a student: layers, maps, relations, margins, whatever the padding, rows of tables or the trainer."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics.pairwise import cosine_similarity

from fed_distill import seeds
from fed_distill.config import TrainerConfig
from fed_distill.data.examples import Examples, Task
from fed_distill.distill.hints import (
    PARTNERS,
    FeatureStudent,
    Layers,
    guided_layer,
    layer_map,
    resampled,
    unwrapped,
)
from fed_distill.errors import ConfigError
from fed_distill.models import build_student
from fed_distill.models.base import Outputs
from fed_distill.training.cohort.trainer import CohortTrainer
from fed_distill.training.optimization import Pace
from fed_distill.training.plan import Phase, Plan
from fed_distill.training.sequential import SequentialTrainer
from fed_distill.training.submodel import completed
from fed_distill.training.trainer import Learner

TASK = Task("toy", ("same", "near", "far"), pair=True, positive="same", gains=(1.0, 0.5, 0.0))
SMALL = {
    "two-tower": {"rows": 256, "width": 8, "head_width": 6},
    "lstm": {"rows": 128, "width": 8},
    "bert-mini": {"rows": 128, "width": 8, "heads": 2, "layers": 3},
}
WORDS = ("red", "blue", "green", "phone", "shoe", "kettle", "maxi", "mini")
EVERY = {"two-tower": ("hints", "hidden", "embeddings", "relations", "ranking", "listwise", "contrastive")}
ALL = ("hints", "hidden", "attention", "relations", "ranking", "listwise", "contrastive")
COUNT, WIDTH = 12, 5
NEXT = torch.arange(COUNT).roll(1)
BESIDE = {
    kind: torch.stack([torch.arange(COUNT).roll(by) for by in range(1, count + 1)], dim=1)
    for kind, count in PARTNERS.items()
}


def pairs(count, seed=0):
    draw = np.random.default_rng(seed)
    texts = tuple(" ".join(draw.choice(WORDS, draw.integers(1, 4))) for _ in range(count))
    others = tuple(" ".join(draw.choice(WORDS, draw.integers(1, 6))) for _ in range(count))
    return Examples(texts, others, draw.integers(0, 3, count), np.arange(count), ("shop",) * count)


def small(kind):
    with seeds.scope(0, "student"):
        return build_student(kind, SMALL[kind], TASK)


def taught(kind, kinds=None, partners=None):
    with seeds.scope(0, "projections"):
        return FeatureStudent(small(kind), kinds or EVERY.get(kind, ALL), True, WIDTH, TASK.gains, partners or BESIDE)


def raw_score(logits):
    """The log-odds of the expected gain, of three classes with gains 1, 1/2 and 0."""
    same, near, far = logits.softmax(dim=-1)
    return ((same + near / 2) / (near / 2 + far)).log()


def read(model, encoded, index):
    """By kind, what is read of some examples, evaluated together."""
    with torch.no_grad():
        outputs = model.eval()(model.collate(encoded, index), hidden=True)
    return dict(zip(model.kinds, outputs.hidden, strict=True))


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        (1, 6, [5]),
        (2, 6, [2, 5]),
        (3, 6, [1, 3, 5]),
        (4, 12, [2, 5, 8, 11]),
        (6, 6, [0, 1, 2, 3, 4, 5]),
        (3, 1, [0, 0, 0]),
    ],
)
def test_layers_are_spread_evenly_over_the_teachers(student, teacher, expected):
    assert layer_map(student, teacher) == expected


@given(st.integers(1, 30), st.integers(1, 30))
def test_a_layer_map_rises_within_the_teacher_and_ends_at_its_last_layer(student, teacher):
    mapped = layer_map(student, teacher)
    assert len(mapped) == student
    assert mapped == sorted(mapped)
    assert mapped[0] >= 0 and mapped[-1] == teacher - 1


def test_the_middle_layer_is_guided():
    assert [guided_layer(layers) for layers in range(1, 7)] == [0, 0, 1, 1, 2, 2]


def test_positions_on_an_edge_count_for_both_parts():
    values = torch.tensor([[1.0, 2.0, 4.0, 9.0], [6.0, 9.0, 9.0, 9.0]])
    used = torch.tensor([[True, True, True, False], [True, False, False, False]])
    torch.testing.assert_close(resampled(values, used, 2), torch.tensor([[2.0, 5.0], [3.0, 3.0]]))
    torch.testing.assert_close(resampled(values[:1], used[:1], 3), values[:1, :3])


@given(st.integers(1, 40), st.integers(1, 20), st.integers(0, 5))
def test_resampling_keeps_the_sum_and_sees_no_padding(length, positions, padding):
    values = torch.rand(1, length + padding, generator=seeds.torch_stream(length))
    used = torch.arange(length + padding)[None, :] < length
    found = resampled(values, used, positions)
    torch.testing.assert_close(found.sum(), values[used].sum(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found, resampled(values[:, :length], used[:, :length], positions))


def test_means_and_maps_are_over_the_used_positions_of_all_layers_but_the_embeddings():
    embeddings, states = torch.full((1, 3, 2), 100.0), torch.tensor([[[1.0, 2.0], [3.0, 4.0], [50.0, 50.0]]])
    layers = Layers.of(Outputs(torch.zeros(1, 3), (embeddings, states), torch.tensor([[True, True, False]])))
    (mean,) = layers.means
    torch.testing.assert_close(mean, torch.tensor([[2.0, 3.0]]))
    expected = torch.tensor([5.0] * 8 + [25.0] * 8) / 8  # squares of two positions, each over half of 16 parts
    torch.testing.assert_close(layers.maps, expected[None, None])


def test_a_model_without_hidden_states_is_refused():
    with pytest.raises(ConfigError, match="no hidden states"):
        Layers.of(Outputs(torch.zeros(1, 3)))


def test_a_tower_has_no_positions_to_compare():
    with pytest.raises(ConfigError, match=r"attention .* two-tower"):
        taught("two-tower", ("attention",))


def test_a_student_that_mixes_both_texts_has_no_vector_of_each():
    with pytest.raises(ConfigError, match="embeddings requires a vector of each text, and lstm"):
        taught("lstm", ("embeddings",))


@pytest.mark.parametrize("kind", SMALL)
def test_what_is_read_is_what_the_students_own_states_give(kind):
    model, examples = taught(kind), pairs(COUNT)
    encoded = model.encode(examples.texts, examples.pairs)
    found = read(model, model.with_partners(encoded, examples), torch.arange(COUNT))
    with torch.no_grad():
        alone = [
            model.student.eval()(model.student.collate(encoded, torch.tensor([row])), True) for row in range(COUNT)
        ]
    states = [
        torch.stack([one.hidden[layer][0].mean(dim=0) for one in alone]) for layer in range(1, len(alone[0].hidden))
    ]
    layers = [projection(state) for projection, state in zip(model.projections, states, strict=True)]
    torch.testing.assert_close(found["hidden"], torch.stack(layers, dim=1))
    torch.testing.assert_close(found["hints"][:, 0], model.hint(states[guided_layer(len(states))]))
    cosines = torch.from_numpy(cosine_similarity(states[-1].numpy()))
    torch.testing.assert_close(found["relations"].flatten(), cosines[torch.arange(COUNT), NEXT], atol=1e-5, rtol=0)
    scores = torch.stack([raw_score(one.logits[0]) for one in alone])
    torch.testing.assert_close(found["ranking"].flatten(), scores - scores[NEXT], atol=1e-5, rtol=0)
    lists = torch.cat([scores[:, None], scores[BESIDE["listwise"]]], dim=1)
    torch.testing.assert_close(found["listwise"][:, 0], lists, atol=1e-5, rtol=0)
    for row, others in enumerate(BESIDE["contrastive"].tolist()):
        mixed = model.student.encode([examples.texts[row]] * 4, [examples.pairs[other] for other in others])
        with torch.no_grad():
            logits = model.student(model.student.collate(mixed, torch.arange(4))).logits
        expected = torch.stack([scores[row], *map(raw_score, logits)])
        torch.testing.assert_close(found["contrastive"][row, 0], expected, atol=1e-5, rtol=0)
    if kind == "two-tower":
        vectors = torch.stack([model.student.vectors(encoded[name]) for name in ("text_ids", "pair_ids")], dim=1)
        torch.testing.assert_close(found["embeddings"], model.embedding(vectors), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", SMALL)
def test_an_examples_readings_do_not_depend_on_its_batch(kind):
    model, examples = taught(kind), pairs(COUNT)
    encoded = model.with_partners(model.encode(examples.texts, examples.pairs), examples)
    together = read(model, encoded, torch.arange(COUNT))
    for row in (0, 7):
        for name, values in read(model, encoded, torch.tensor([row])).items():
            torch.testing.assert_close(values[0], together[name][row], atol=1e-5, rtol=1e-5)


def test_logits_are_the_students_and_an_example_without_partner_is_its_own():
    model, examples = taught("lstm"), pairs(COUNT)
    encoded = model.encode(examples.texts, examples.pairs)
    batch = model.collate(encoded, torch.arange(COUNT))
    assert torch.equal(model.eval()(batch).logits, model.student(batch).logits)
    assert model(batch).hidden is None
    found = read(model, encoded, torch.arange(COUNT))
    torch.testing.assert_close(found["relations"], torch.ones(COUNT, 1, 1))
    torch.testing.assert_close(found["ranking"], torch.zeros(COUNT, 1, 1), atol=1e-6, rtol=0)


def test_wrapping_adds_projections_and_unwrapping_leaves_the_students_own():
    model = taught("bert-mini")
    own = {name: value.clone() for name, value in model.student.state_dict().items()}
    wrapped = model.wrapped(own)
    assert wrapped.keys() == model.state_dict().keys()
    assert {name for name in wrapped if not name.startswith("student.")} == {
        *("hint.weight", "hint.bias"),
        *(f"projections.{layer}.{part}" for layer in range(3) for part in ("weight", "bias")),
    }
    assert all(torch.equal(value, own[name]) for name, value in unwrapped(wrapped).items())
    assert unwrapped(wrapped).keys() == own.keys()


def learners(model, count):
    """Owners of different examples who share a wrapped student and the proxy set."""
    proxy = pairs(COUNT, seed=99)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    found = []
    for number in range(count):
        examples = pairs(9 + number, seed=number)
        found.append(
            Learner(
                f"shop {number}",
                model,
                start,
                private=model.encode(examples.texts, examples.pairs),
                labels=torch.from_numpy(examples.labels),
                proxy=model.with_partners(model.encode(proxy.texts, proxy.pairs), proxy),
                randomness=(7, f"shop {number}"),
            )
        )
    return found


def plan(model):
    """Labels, then everything that is read pulled to numbers that were drawn, then labels again."""
    shapes = read(model, learners(model, 1)[0].proxy, torch.arange(COUNT))
    drawn = {name: torch.randn(value.shape, generator=seeds.torch_stream(3, name)) for name, value in shapes.items()}

    def objective(outputs, references):
        apart = zip(model.kinds, outputs.hidden, strict=True)
        return sum((one - references[name]).square().flatten(1).mean(dim=1) for name, one in apart)

    labels = Phase(
        lambda outputs, references: torch.nn.functional.cross_entropy(
            outputs.logits, references["labels"], reduction="none"
        ),
        epochs=1,
    )
    return Plan((labels, Phase(objective, data="proxy", epochs=2, references=drawn, hidden=True), labels))


def fitted(trainer, owners, trained):
    """Whole weights and losses of each."""
    results = trainer.fit(owners, {one.name: trained for one in owners}, Pace(1e-2))
    return {one.name: (completed(one.weights, owners[0].weights), one.loss) for one in results}


@pytest.mark.parametrize("kind", SMALL)
def test_training_pulls_the_readings_to_their_references_and_moves_student_and_projections(kind):
    model = taught(kind)
    (owner,) = learners(model, 1)
    (phase,) = (one for one in plan(model).phases if one.data == "proxy")
    longer = Plan((phase, dataclasses.replace(phase, epochs=30), phase))
    ((weights, losses),) = fitted(SequentialTrainer(TrainerConfig(batch_size=4)), [owner], longer).values()
    assert losses[2] < 0.9 * losses[0]
    for name in (next(iter(model.tables)), "hint.weight", "projections.0.weight"):
        assert not torch.equal(weights[name], owner.weights[name]), name


@pytest.mark.parametrize("kind", ("two-tower", "lstm"))
def test_rows_that_partners_touch_are_part_of_the_submodel(kind, distance):
    model = taught(kind)
    (owner,), trained = learners(model, 1), plan(model)
    whole, part = (
        fitted(SequentialTrainer(TrainerConfig(batch_size=4, submodel=submodel)), [owner], trained)["shop 0"][0]
        for submodel in (False, True)
    )
    assert distance(part, whole) < 1e-5


@pytest.mark.parametrize("kind", SMALL)
def test_a_cohort_of_wrapped_students_trains_as_one_after_another(kind, distance, caplog):
    model = taught(kind)
    owners, trained = learners(model, 3), plan(model)
    config = TrainerConfig(batch_size=4, optimizer="sgd")
    slow, fast = (fitted(one, owners, trained) for one in (SequentialTrainer(config), CohortTrainer(config, cohort=3)))
    assert not caplog.records  # nothing fell back to the trainer that it is compared with
    for name, (weights, losses) in slow.items():
        assert distance(fast[name][0], weights) < 1e-5
        assert fast[name][1] == pytest.approx(losses, rel=1e-4)
