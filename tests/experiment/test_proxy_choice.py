"""A proxy set that the teacher chooses: the server picks, and every site uses what was picked."""

import json
import shutil

import numpy as np
import pytest
import torch

from fed_distill.data import load
from fed_distill.data.proxy_account import proxy_account
from fed_distill.errors import DataError
from fed_distill.experiment.teaching import prepare_teacher
from fed_distill.merchant.app import build_app
from fed_distill.reporting.callbacks import Callback, CallbackList

CHOSEN = {
    "data.proxy_choice": "uncertainty",
    "controls": [],
    "federation": {"method": "fedmd", "rounds": 2},
}


def entropy(labels):
    return -(labels * labels.clamp_min(1e-12).log()).sum(dim=1)


@pytest.fixture(scope="module")
def teachings(tiny_experiment, tmp_path_factory):
    """What the teacher makes of its own choice, and of all candidates."""
    chosen = tiny_experiment(tmp_path_factory.mktemp("chosen"), CHOSEN)
    size = chosen.data.proxy_size
    every = chosen.with_changes({"data.proxy_choice": "random", "data.proxy_size": 4 * size})
    return [prepare_teacher(one, load(one.data), CallbackList([])) for one in (chosen, every)]


def test_the_teacher_takes_the_quarter_that_it_is_least_sure_of(teachings):
    chosen, every = teachings
    assert len(chosen.data.proxy) == len(chosen.labels) == len(every.labels) // 4
    taken = torch.from_numpy(chosen.chosen)
    assert torch.equal(chosen.labels, every.labels[taken])
    assert float(entropy(every.labels[taken]).min()) >= float(entropy(every.labels[~taken]).max()) - 1e-6
    assert chosen.data.account["examples"]["proxy"] == len(chosen.data.proxy)
    assert every.chosen is None
    assert np.array_equal(chosen.data.proxy_truth, every.data.proxy_truth[chosen.chosen])
    assert chosen.data.account["proxy"] == proxy_account(chosen.data)


def test_all_sites_train_on_what_was_chosen(tiny_experiment, simulate, tmp_path):
    """Soft labels of the chosen examples only come back, and the result does not depend on who hosts whom."""
    runs = []
    for sites in (1, 3):
        folder, _ = simulate(tiny_experiment(tmp_path / f"{sites}", CHOSEN), sites=sites)
        runs.append([json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()])
    for one, three in zip(*runs, strict=True):
        assert (one["rejected"], three["rejected"]) == (0, 0)
        assert one["train_loss"] == pytest.approx(three["train_loss"], rel=1e-5)
        assert one["valid"] == pytest.approx(three["valid"], rel=1e-5)


def test_a_resumed_run_chooses_the_same(tiny_experiment, simulate, outcome_of, tmp_path):
    experiment = tiny_experiment(tmp_path, CHOSEN)
    folder, _ = simulate(experiment)
    before = outcome_of(folder)
    shutil.rmtree(folder / "checkpoint" / "seed-0" / "federations")
    again, _ = simulate(experiment.with_changes({"runtime.resume": True}))
    assert outcome_of(again) == before


def test_a_site_with_other_data_refuses(tiny_experiment, simulate, tmp_path):
    """The sites' proxy set is smaller than the one that the server has chosen in."""
    experiment = tiny_experiment(tmp_path, CHOSEN)
    other = load(experiment.data.model_copy(update={"proxy_size": experiment.data.proxy_size - 2}))
    with pytest.raises(DataError, match="has other classes or another proxy set than the server"):
        simulate(experiment, app=build_app(other))


class Messages(Callback):
    def __init__(self):
        self.texts = []

    def on_message(self, text):
        self.texts.append(text)


@pytest.mark.parametrize("choice", ["random", "uncertainty"])
def test_a_run_on_a_small_table_goes_on_with_less_and_tells_once(tiny_experiment, simulate, tmp_path, choice):
    changes = {**CHOSEN, "data.proxy_choice": choice, "data.proxy_size": 10**6, "federation.rounds": 1}
    messages = Messages()
    folder, _ = simulate(tiny_experiment(tmp_path, changes), sites=2, callbacks=[messages])
    (told,) = [text for text in messages.texts if "data.proxy_size" in text]
    account = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["data"]
    assert told == f"the proxy set has {account['proxy_set']}"
    assert account["proxy_set"].startswith(f"{account['examples']['proxy']:,} examples")
    assert f"{account['examples']['proxy']:,} examples, all that" in (folder / "report.html").read_text(
        encoding="utf-8"
    )
