"""What merchants leave alone is chosen by name, or is a transformer's embeddings."""

import pytest

from fed_distill.errors import ConfigError
from fed_distill.models import build_student
from fed_distill.models.freezing import freeze, freeze_base, frozen, layers_of, matched


def trained(student):
    return {name for name, value in student.named_parameters() if value.requires_grad}


def test_patterns_choose_weights_by_name(student, task):
    student = student("two-tower", task)
    every = {name for name, _ in student.named_parameters()}
    assert trained(freeze(student, ["bag.*"])) == {name for name in every if name.startswith("head.")}
    assert trained(freeze(student, ["*.bias", "bag.table"])) == {"bag.importance", "head.0.weight", "head.2.weight"}
    assert trained(freeze(student, [])) == every


def test_without_patterns_a_transformers_embeddings_are_frozen_and_nothing_of_another_student(student, task):
    student = student("two-tower", task)
    assert trained(freeze(student, None)) == {name for name, _ in student.named_parameters()}
    bert = build_student("bert-mini", {"width": 16, "heads": 2, "rows": 64, "layers": 1}, task)
    frozen = {name for name, _ in bert.named_parameters()} - trained(freeze(bert, None))
    assert frozen == {
        f"network.bert.embeddings.{kind}_embeddings.weight" for kind in ("word", "position", "token_type")
    }


@pytest.mark.parametrize("patterns", [None, [], ["*.bias"]])
@pytest.mark.parametrize(
    ("adapters", "part", "count"),
    [({"lora_rank": 4}, "lora_", 4), ({"ia3": True}, "ia3_l.", 3), ({"prefix_length": 3}, "prefix.", 1)],
)
def test_of_a_student_with_adapters_only_these_and_its_head_are_trained(task, adapters, part, count, patterns):
    sizes = {"width": 16, "heads": 2, "rows": 64, "layers": 1}
    student = build_student("bert-mini", {**sizes, **adapters}, task)
    expected = {name for name in trained(student) if part in name or ".pooler." in name or ".classifier." in name}
    assert len(expected) == count + 4
    wanted = {name for name in expected if patterns != ["*.bias"] or not name.endswith("bias")}
    assert trained(freeze(student, patterns)) == wanted
    assert trained(freeze_base(student)) == expected
    plain = build_student("bert-mini", sizes, task)
    assert trained(freeze_base(plain)) == {name for name, _ in plain.named_parameters()}


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        ("two-tower", {}, [{"bag"}, {"head.0"}, {"head.2"}]),
        ("lstm", {}, [{"words"}, {"segments"}, {"forwards"}, {"backwards"}, {"attention"}, {"head"}]),
        (
            "bert-mini",
            {"width": 16, "heads": 2, "rows": 64, "layers": 2},
            [
                {"network.bert.embeddings"},
                {"network.bert.encoder.layer.0"},
                {"network.bert.encoder.layer.1"},
                {"network.bert.pooler", "network.classifier"},
            ],
        ),
    ],
)
def test_layers_go_from_the_input_to_the_head(kind, options, expected, task):
    student = build_student(kind, options, task)
    layers = layers_of(student)
    assert set().union(*layers) == trained(student)
    assert len(layers) == len(expected)
    for names, starts in zip(layers, expected, strict=True):
        assert all(name.startswith(tuple(starts)) for name in names)
    with frozen(student, layers[0] | layers[1]):
        assert trained(student) == set().union(*layers[2:])
    assert trained(student) == set().union(*layers)


@pytest.mark.parametrize(
    ("patterns", "message"),
    [(["bags.*"], r"no weight matches 'bags\.\*'; the weights are bag\.table"), (["*"], "freeze matches all weights")],
)
def test_patterns_that_cannot_be_meant_are_refused(student, task, patterns, message):
    with pytest.raises(ConfigError, match=message):
        freeze(student("two-tower", task), patterns)


def test_matched_names_the_key_whose_pattern_matches_nothing(student, task):
    two_tower = student("two-tower", task)
    assert matched(two_tower, ["bag.*", "*.importance"], "rates") == {"bag.table", "bag.importance"}
    with pytest.raises(ConfigError, match=r"rates: no weight matches 'head'; the weights are bag\.table"):
        matched(two_tower, ["bag.*", "head"], "rates")
