"""A payload of one's own, as the documentation shows it: one file beside a method that sends it, by import path."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fed_distill import run
from fed_distill.errors import ConfigError
from fed_distill.methods import METHODS
from fed_distill.payloads.base import Context
from fed_distill.transport.messages import Uplink
from fed_distill.transport.records import encode_uplink, serialized_bytes

GUIDE = Path(__file__).parents[2] / "docs" / "how-to" / "extending.md"
COVERED = re.compile(r"    covered: ClassVar.*\n")
QUICK = {
    "federation.options": {},
    "controls": [],
    "adaptation.enabled": False,
    "runtime.measure_speed": False,
}
PRIVATE = {"privacy.unit": "example", "privacy.noise_multiplier": 1.0, "privacy.training.optimizer": "sgd"}
"""Terms under which what merchants send must be covered."""


@pytest.fixture
def written(tmp_path, monkeypatch):
    """A function: writes the documented module under a name, after a change, where it is found."""

    def write(name, change=lambda source: source):
        blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
        (source,) = (block for block in blocks if "class ClassEntropies" in block)
        (tmp_path / f"{name}.py").write_text(change(source), encoding="utf-8")

    monkeypatch.chdir(tmp_path)
    yield write
    for name in [name for name in sys.modules if name.startswith("own_entropy")]:
        del sys.modules[name]


def test_it_is_computed_as_by_a_loop_and_checked(written):
    written("own_entropy_checked")
    kind = METHODS.resolve("own_entropy_checked:ClassEntropies")
    probabilities = torch.tensor([[0.5, 0.3, 0.2], [0.6, 0.2, 0.2], [0.1, 0.1, 0.8]])
    sent, context = kind.of(probabilities), Context({}, 3, 3)
    by_row = [-sum(p * torch.log(torch.tensor(p)) for p in row) for row in probabilities.tolist()]
    torch.testing.assert_close(sent.entropies, torch.stack([(by_row[0] + by_row[1]) / 2, torch.tensor(0.0), by_row[2]]))
    sent.validate(context)
    for odd in (torch.ones(2), torch.ones(3).double(), torch.tensor([0.0, float("nan"), 0.0]), -torch.ones(3)):
        with pytest.raises(ValueError, match="class entropies"):
            kind(odd).validate(context)


def test_it_reaches_the_server_and_its_bytes_are_counted(written, tiny_experiment, tmp_path):
    written("own_entropy_sent")
    method = "own_entropy_sent:Watched"
    changes = {**QUICK, "federation.method": method, "compare": [{"method": "fedavg"}]}
    result = run(tiny_experiment(tmp_path, changes))
    lines = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    rounds = {name: [line for line in lines if line.get("federation") == name] for name in (method, "fedavg")}
    assert [(line["merchants"], line["rejected"]) for line in rounds[method]] == [(5, 0), (5, 0)]
    classes = 4
    kind = METHODS.resolve("own_entropy_sent:ClassEntropies")
    with_it, without = Uplink("a", 1, (kind(torch.zeros(classes)),)), Uplink("a", 1)
    more = serialized_bytes(encode_uplink(with_it)) - serialized_bytes(encode_uplink(without))
    assert more > 4 * classes
    for own, plain in zip(rounds[method], rounds["fedavg"], strict=True):
        assert own["bytes"]["uplink"] - plain["bytes"]["uplink"] == pytest.approx(more)
    kept = [load_file(path) for path in (result.folder / "checkpoint").rglob("*.safetensors")]
    (entropies,) = [state["kept/entropies"] for state in kept if "kept/entropies" in state]
    assert entropies.shape == (classes,)
    assert float(entropies.min()) >= 0.0 < float(entropies.max())


def test_a_private_run_refuses_it_unless_it_says_why_training_covers_it(written, tiny_experiment, tmp_path):
    changes = {**QUICK, **PRIVATE, "federation.rounds": 1}
    written("own_entropy_bare", lambda source: COVERED.sub("", source))
    written("own_entropy_covered")
    with pytest.raises(ConfigError, match=r"does not cover all payloads of method own_entropy_bare:Watched: its "):
        run(tiny_experiment(tmp_path / "bare", {**changes, "federation.method": "own_entropy_bare:Watched"}))
    assert not (tmp_path / "bare").exists()
    result = run(tiny_experiment(tmp_path / "covered", {**changes, "federation.method": "own_entropy_covered:Watched"}))
    summary = json.dumps(result.summary)
    assert "mean entropy on proxy examples of each class" in summary
    assert "mean entropy on proxy examples of each class" in result.report.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('("class_entropies",)', '("update",)', "two kinds in `sends` have a record 'update'"),
        ('("class_entropies",)', '("metrics",)', "two kinds in `sends` have a record 'metrics', or a message has one"),
        ("sends = (StudentUpdate, ClassEntropies)", "sends = None", "does not declare `sends`"),
        ("sends = (StudentUpdate, ClassEntropies)", "sends = FedAvg.receives", "sends StudentWeights, which only the"),
        ("sends = (", "receives = None; sends = (", "does not declare `receives`"),
    ],
)
def test_a_declaration_that_cannot_be_kept_is_refused_before_anything_is_written(
    written, tiny_experiment, tmp_path, old, new, message
):
    name = f"own_entropy_{re.sub('[^a-z]', '', old + new)[-30:]}"
    written(name, lambda source: source.replace(old, new))
    with pytest.raises(ConfigError, match=f"method {name}:Watched.*{message}"):
        run(tiny_experiment(tmp_path / "runs", {**QUICK, "federation.method": f"{name}:Watched"}))
    assert not (tmp_path / "runs").exists()
