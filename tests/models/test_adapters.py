"""Adapters against plain computations: what they change at first, what they compute, and that they learn."""

import pytest
import torch

from fed_distill import seeds
from fed_distill.config import TrainerConfig
from fed_distill.distill.losses import hard_labels
from fed_distill.errors import ConfigError
from fed_distill.models import build_student, load_model, predict
from fed_distill.models.adapters import check_per_example
from fed_distill.models.freezing import freeze_base
from fed_distill.training.cohort.trainer import CohortTrainer
from fed_distill.training.optimization import Pace
from fed_distill.training.plan import Phase, Plan
from fed_distill.training.sequential import SequentialTrainer
from fed_distill.training.trainer import Learner

SIZES = {"width": 16, "heads": 2, "rows": 64, "layers": 2}
SHOPS = ("shop 0", "shop 1")
KINDS = ("bert-mini", "distilbert", "mobilebert")
EVERY = [
    *((kind, adapters) for kind in KINDS for adapters in ({"lora_rank": 2}, {"ia3": True})),
    ("bert-mini", {"prefix_length": 3}),
]


@pytest.fixture
def built(task):
    def build(kind, **options):
        with seeds.scope(3, kind):
            return build_student(kind, {**SIZES, **options}, task)

    return build


@pytest.fixture
def encoded(built, make_examples):
    examples = make_examples(12)
    return built("bert-mini").encode(examples.texts, examples.pairs)


def adapted(student, plain, value=None):
    """``student`` with the weights of ``plain``, and its adapters' own."""
    own = plain.state_dict()
    weights = {name: own.get(name.replace("base_layer.", ""), kept) for name, kept in student.state_dict().items()}
    assert len(weights) > len(own) and own.keys() <= {name.replace("base_layer.", "") for name in weights}
    student.load_state_dict(weights)
    return student


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("adapters", [{"lora_rank": 2}, {"ia3": True}])
def test_at_first_they_change_nothing(built, encoded, kind, adapters):
    plain = built(kind)
    student = adapted(built(kind, **adapters), plain)
    torch.testing.assert_close(predict(student, encoded), predict(plain, encoded))


def test_factors_scale_keys_values_and_what_enters_the_second_product(built, encoded):
    """So weights that are scaled beforehand give the same."""
    plain = built("bert-mini")
    student = adapted(built("bert-mini", ia3=True), plain)
    draw = torch.Generator().manual_seed(0)
    weights = student.state_dict()
    factors = {name: torch.rand(value.shape, generator=draw) + 0.5 for name, value in weights.items() if "ia3" in name}
    assert len(factors) == 3 * SIZES["layers"]
    student.load_state_dict({**weights, **factors})
    scaled = plain.state_dict()
    for layer in range(SIZES["layers"]):
        at = f"network.bert.encoder.layer.{layer}"
        for part in ("key", "value"):
            factor = factors[f"{at}.attention.self.{part}.ia3_l.default"].flatten()
            scaled[f"{at}.attention.self.{part}.weight"] *= factor.unsqueeze(1)
            scaled[f"{at}.attention.self.{part}.bias"] *= factor
        scaled[f"{at}.output.dense.weight"] *= factors[f"{at}.output.dense.ia3_l.default"]
    plain.load_state_dict(scaled)
    torch.testing.assert_close(predict(student, encoded), predict(plain, encoded))


def test_a_prefix_is_keys_and_values_of_every_layer_before_the_texts_own(built, encoded):
    """Of one layer, computed by hand: softmax over prefix and text together."""
    student = built("bert-mini", layers=1, prefix_length=3).eval()
    batch = student.collate(encoded, torch.arange(4))
    caught = {}
    attention = student.network.bert.encoder.layer[0].attention.self
    hook = attention.register_forward_hook(lambda _, inputs, output: caught.update(states=inputs[0], found=output[0]))
    with torch.no_grad():
        student(batch)
    hook.remove()
    keys, values = student.prefix.encoder.embedding.weight.detach().chunk(2, dim=1)
    for states, found, ids in zip(caught["states"], caught["found"], batch["input_ids"], strict=True):
        used = torch.cat([torch.ones(3, dtype=torch.bool), ids > 0])
        query = attention.query(states)
        key, value = (
            torch.cat([before, layer(states)])[used]
            for before, layer in ((keys, attention.key), (values, attention.value))
        )
        heads = [
            torch.softmax(q @ k.T / 8**0.5, dim=-1) @ v
            for q, k, v in zip(*(part.split(8, dim=1) for part in (query, key, value)), strict=True)
        ]
        torch.testing.assert_close(found, torch.cat(heads, dim=1))


@pytest.mark.parametrize(("kind", "adapters"), EVERY)
def test_they_are_saved_and_loaded_with_the_student(built, encoded, kind, adapters, tmp_path):
    student = built(kind, **adapters).eval()
    student.save(tmp_path / "student")
    assert torch.equal(predict(load_model(tmp_path / "student"), encoded), predict(student, encoded))


@pytest.fixture
def shops(make_examples):
    def make(student):
        start = {name: value.clone() for name, value in student.state_dict().items()}
        shops = []
        for number in range(2):
            examples = make_examples(24, seed=number)
            texts = student.encode(examples.texts, examples.pairs)
            labels, randomness = torch.from_numpy(examples.labels), (5, "arm", f"shop {number}", 1)
            shops.append(Learner(f"shop {number}", student, start, texts, labels, texts, randomness))
        return shops

    return make


@pytest.mark.parametrize(("kind", "adapters"), EVERY)
def test_a_merchant_learns_by_them_and_its_head(built, shops, kind, adapters):
    """Ten epochs after another: the loss of the last is lower."""
    student = freeze_base(built(kind, **adapters))
    trainer, plan = SequentialTrainer(TrainerConfig(batch_size=8)), Plan((Phase(hard_labels(), epochs=1.0),) * 10)
    for shop in shops(student):
        fitted = next(trainer.fit([shop], {shop.name: plan}, Pace(0.01)))
        assert fitted.loss[-1] < fitted.loss[0]
        moved = {name for name, value in fitted.weights.arrays.items() if not torch.equal(value, shop.weights[name])}
        assert any(part in name for name in moved for part in ("lora_", "ia3_l", "prefix."))


def test_a_cohort_says_that_it_cannot_stack_factors_and_trains_one_after_another(built, shops, caplog, distance):
    student = freeze_base(built("bert-mini", ia3=True))
    config, plan = TrainerConfig(batch_size=8), Plan((Phase(hard_labels(), epochs=1.0),))
    slow, fast = (
        {one.name: one.weights.arrays for one in trainer.fit(shops(student), dict.fromkeys(SHOPS, plan), Pace(0.01))}
        for trainer in (SequentialTrainer(config), CohortTrainer(config))
    )
    assert "one after another" in caplog.text
    assert all(distance(fast[name], slow[name]) == 0.0 for name in SHOPS)


def test_factors_alone_hide_an_examples_gradient(built):
    check_per_example(built("bert-mini", lora_rank=2))
    check_per_example(built("bert-mini", prefix_length=2))
    with pytest.raises(ConfigError, match="use lora_rank or prefix_length"):
        check_per_example(built("bert-mini", ia3=True))


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("bert-mini", {"lora_rank": 2, "ia3": True}, "one kind of adapters, not lora_rank and ia3"),
        ("bert-mini", {"ia3": True, "prefix_length": 2}, "one kind of adapters, not ia3 and prefix_length"),
        ("distilbert", {"prefix_length": 2}, "no option 'prefix_length'"),
        ("bert-mini", {"prefix_length": 0}, "option prefix_length"),
    ],
)
def test_what_there_is_not_is_refused(built, kind, options, message):
    with pytest.raises(ConfigError, match=message):
        built(kind, **options)
