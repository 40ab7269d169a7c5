"""Shared by all tests: a small task, its examples, a small student for it, and whole runs of about a second.

Each test process, and each process that a test starts, has one thread and asks no model hub.
"""

import os

# before the libraries that read it are imported
os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message
from flwr.common.serde import recorddict_to_proto
from hypothesis import settings
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from fed_distill import logs, seeds
from fed_distill.config import Experiment
from fed_distill.data.examples import Examples, Task
from fed_distill.experiment.grid import InProcessGrid
from fed_distill.experiment.run import run_experiment
from fed_distill.merchant.app import build_app
from fed_distill.models import build_student
from fed_distill.models.base import TextModel
from fed_distill.models.transformer import Transformer
from fed_distill.reporting.callbacks import CallbackList
from fed_distill.reporting.result import Result

settings.register_profile("no clock", deadline=None)  # a test passes on a busy machine too
settings.load_profile("no clock")

TIMES = ("seconds", "speed", "name")
WORDS = ("red", "blue", "green", "phone", "shoe", "kettle", "maxi", "mini", "ultra", "pro", "kühl", "手机")


def pytest_addoption(parser):
    parser.addoption("--golden", action="store_true", help="store what the golden runs give now")


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_home_cache(tmp_path_factory, monkeypatch):
    """Nothing that a test does reaches the user's cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(autouse=True)
def logging_as_it_was():
    """What a test, or an app that it calls, installs in this process's logging is removed again."""
    yield
    while logs._installed:
        logs._installed.pop().remove()


@pytest.fixture
def task() -> Task:
    return Task("toy", ("same", "near", "far"), pair=True, positive="same", gains=(1.0, 0.5, 0.0))


@pytest.fixture
def make_examples(task):
    """A function that makes ``size`` labelled pairs for a merchant from its own generator."""

    def make(size: int, merchant: str = "shop", seed: int = 0) -> Examples:
        draw = np.random.default_rng(seed)
        texts = [" ".join(draw.choice(WORDS, 3)) for _ in range(size)]
        pairs = [" ".join(draw.choice(WORDS, 4)) for _ in range(size)]
        return Examples(
            tuple(texts),
            tuple(pairs),
            draw.integers(0, len(task.classes), size).astype(np.int64),
            np.arange(size, dtype=np.int64),
            (merchant,) * size,
        )

    return make


@pytest.fixture
def student(task) -> TextModel:
    with seeds.scope(0, "test student"):
        return build_student("two-tower", {"rows": 512, "width": 8, "head_width": 8}, task)


@pytest.fixture(scope="session")
def wordpiece_teacher():
    """A function (task) -> a random BERT whose WordPiece tokenizer was trained on the words of the examples."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(WORDS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    config = {
        "model_type": "bert",
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
    }

    def make(task: Task) -> Transformer:
        with seeds.scope(0, "wordpiece teacher"):
            return Transformer(
                len(task.classes), task.pair, config=config, max_length=64, tokenizer=tokenizer.to_str()
            ).eval()

    return make


TINY = {
    "name": "tiny",
    "data": {
        "proxy_size": 40,
        "min_rows": 10,
        "max_merchants": 5,
        "max_examples": 60,
        "options": {"merchants": 8, "rows": 40, "size_spread": 0.4, "ranking_queries": 20, "ranking_candidates": 8},
    },
    "teacher": {"options": {"layers": 1, "width": 16, "heads": 2}, "epochs": 1, "max_examples": 60, "max_length": 24},
    "student": {"options": {"rows": 2048, "width": 8, "head_width": 8}},
    "training": {
        "merchants": {"learning_rate": 0.01, "batch_size": 16},
        "server": {"epochs": 1},
        "pooled": {"epochs": 1},
        "local": {"epochs": 1},
    },
    "federation": {"rounds": 2, "options": {"proxy_steps": 2}},
    "adaptation": {"epochs": 0.5},
    "runtime": {"callbacks": []},
}


@pytest.fixture(scope="session")
def tiny_experiment(tmp_path_factory):
    """A function (folder for runs, dotted changes) -> an experiment of about a second; all share one teacher."""
    cache = tmp_path_factory.mktemp("teachers")

    def make(folder: Path, changes: Mapping[str, Any] | None = None) -> Experiment:
        places = {"runtime.folder": str(folder), "runtime.cache": str(cache)}
        return Experiment.parse(TINY).with_changes({**places, **(changes or {})})

    return make


def flips(data: bytes) -> Iterator[bytes]:
    """``data`` with one bit of one byte changed, for each byte in turn."""
    for place, value in enumerate(data):
        yield data[:place] + bytes([value ^ 1 << place % 8]) + data[place + 1 :]


class RecordingGrid(InProcessGrid):
    """Keeps (type, request, reply) of every message, serialized as on the wire."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.wire: list[tuple[str, bytes, bytes]] = []

    def _run_at_node(self, message: Message) -> Message:
        request = recorddict_to_proto(message.content).SerializeToString()
        reply = super()._run_at_node(message)
        answer = b"" if reply.has_error() else recorddict_to_proto(reply.content).SerializeToString()
        self.wire.append((message.metadata.message_type, request, answer))
        return reply


@pytest.fixture(scope="session")
def simulate():
    """A function that runs an experiment over an own client app, number of sites and callbacks; gives folder, grid."""

    def run(experiment, app=None, sites=1, callbacks=(), secret=""):
        grid = RecordingGrid(app or build_app(), experiment.to_run_config(), sites)
        return run_experiment(experiment, grid, CallbackList(callbacks), secret), grid

    return run


@pytest.fixture(scope="session")
def tiny_run(tiny_experiment, simulate, tmp_path_factory):
    """One whole run, shared by the tests that only look at it: experiment, result, and what was on the wire."""
    changes = {
        "federation.aggregator": "fedsubavg",
        "adaptation.personal": True,
        "compare": [{"method": "fedmd", "aggregator": "fedavg"}],
    }
    experiment = tiny_experiment(tmp_path_factory.mktemp("runs"), changes)
    folder, grid = simulate(experiment)
    return SimpleNamespace(experiment=experiment, result=Result(folder), wire=grid.wire)


def timeless(value):
    if isinstance(value, dict):
        return {key: timeless(child) for key, child in value.items() if key not in TIMES}
    return [timeless(child) for child in value] if isinstance(value, list) else value


@pytest.fixture(scope="session")
def outcome_of():
    """A function: summary, rounds and student weights of a finished run, times left out."""

    def outcome(folder):
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return {
            "summary": timeless(json.loads((folder / "summary.json").read_text(encoding="utf-8"))),
            "rounds": [timeless(json.loads(line)) for line in lines],
            "student": (folder / "student" / "model.safetensors").read_bytes(),
            "classes": (folder / "classification_report.txt").read_text(encoding="utf-8"),
        }

    return outcome


@pytest.fixture(scope="session")
def distance():
    """A function: the largest relative L2 distance between two sets of weights, array by array.

    An array of norm below 1e-3 counts as one of that norm: of one that is zero but for rounding, only rounding is left.
    """

    def largest(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> float:
        assert one.keys() == other.keys()
        apart = [
            float((one[name] - other[name]).norm() / other[name].norm().clamp_min(1e-3))
            for name in one
            if not torch.equal(one[name], other[name])
        ]
        return max(apart, default=0.0)

    return largest
