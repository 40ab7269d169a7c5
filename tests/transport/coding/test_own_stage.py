"""A stage of one's own is one file, named by import path, and no other file changes."""

import pytest

from fed_distill import run
from fed_distill.errors import ConfigError

STAGE = '''
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch


@dataclass(frozen=True)
class HighBytes:
    """Float32 without its lower half: bfloat16, rounded toward zero."""

    scale: float = 1.0
    last: ClassVar[bool] = True
    first: ClassVar[bool] = False

    def encode(self, value, out, draw, rest):
        out.array((self.scale * value).contiguous().view(torch.int32).bitwise_right_shift(16).to(torch.int16).numpy())

    def decode(self, shape, source, rest):
        half = torch.from_numpy(source.array(np.int16, int(np.prod(shape)))).to(torch.int32)
        return half.bitwise_left_shift(16).view(torch.float32).reshape(shape) / self.scale
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "stage_of_the_test.py").write_text(STAGE, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))


def test_it_codes_a_run(own, tiny_experiment, tmp_path):
    quick = {"controls": [], "adaptation.enabled": False, "federation.method": "fedavg", "federation.options": {}}
    plain = run(tiny_experiment(tmp_path / "plain", quick)).summary
    stages = [{"stage": "stage_of_the_test:HighBytes", "scale": 2.0}]
    coded = run(tiny_experiment(tmp_path / "coded", {**quick, "transport.weights": stages})).summary
    before, after = (one["federations"]["fedavg"]["bytes"]["uplink_per_merchant_round"] for one in (plain, coded))
    assert after < 0.7 * before
    assert coded["student"]["auc"] == pytest.approx(plain["student"]["auc"], abs=0.05)


def test_a_wrong_option_is_named(own, tiny_experiment, tmp_path):
    with pytest.raises(ConfigError, match="option scale"):
        run(
            tiny_experiment(
                tmp_path, {"transport.weights": [{"stage": "stage_of_the_test:HighBytes", "scale": "large"}]}
            )
        )
