"""What a notebook uses: ``Experiment``, ``run``, data frames, and own parts as the documentation shows them."""

import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest

import fed_distill
from fed_distill import Experiment, Result, run
from fed_distill.errors import CheckpointError
from fed_distill.models import load_model

GUIDE = Path(__file__).parent.parent / "docs" / "how-to" / "extending.md"


def test_run_returns_a_result_with_data_frames(tiny_experiment, tmp_path):
    result = run(tiny_experiment(tmp_path, {"controls": ["server"]}))
    assert isinstance(result, Result)
    assert result.folder == tmp_path / "tiny"
    assert all(isinstance(table, pd.DataFrame) for table in (result.comparison, result.rounds, result.merchants))
    assert len(result.rounds) == 2
    assert len(result.merchants) >= 5
    assert result.comparison.to_string().count("fedavg-kd") >= 1
    assert result.summary["merchants"] == 5
    assert result.report.is_file()
    assert load_model(result.student).parameter_count() == result.summary["student"]["parameters"]


def test_a_run_over_several_sites_in_process_scores_the_same(tiny_experiment, tmp_path):
    quick = {"controls": ["server"], "federation.rounds": 1}
    one = run(tiny_experiment(tmp_path / "one", quick)).summary
    three = run(tiny_experiment(tmp_path / "three", {**quick, "runtime.sites": 3})).summary
    assert three["merchants"] == one["merchants"] == 5
    for score in ("accuracy", "auc", "ndcg@10"):
        assert three["student"][score] == pytest.approx(one["student"][score], abs=1e-6)


def test_the_package_offers_what_it_lists_and_nothing_else():
    assert all(getattr(fed_distill, name) is not None for name in fed_distill.__all__)
    with pytest.raises(AttributeError, match="module 'fed_distill' has no attribute 'train'"):
        _ = fed_distill.train


def test_public_names_are_listed_before_they_are_imported():
    code = "import sys, fed_distill; print(sorted(dir(fed_distill)), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("False")
    assert all(repr(name) in done.stdout for name in fed_distill.__all__)


def test_a_finished_run_is_opened_by_its_folder_and_shown_as_a_table(tiny_experiment, tmp_path):
    folder = run(tiny_experiment(tmp_path, {"controls": ["server"], "federation.rounds": 1})).folder
    result = Result(str(folder))
    assert repr(result) == f"Result({str(folder)!r})"
    shown = ElementTree.fromstring(result._repr_html_())
    teacher, control, federation = (row[0].text for row in shown.iterfind("tbody/tr"))
    assert list(result.comparison["name"]) == [teacher, "server", federation]
    assert control == "server alone"
    with pytest.raises(CheckpointError, match="it is not the folder of a run"):
        Result(tmp_path / "nothing")


def block(language):
    found = re.search(rf"```{language}\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    return found[1]


def test_the_documented_parts_of_ones_own_run_and_are_short(tiny_experiment, tmp_path, monkeypatch, capsys):
    assert block("python").count("\n") < 40
    (tmp_path / "my_shop.py").write_text(block("python"), encoding="utf-8")
    (tmp_path / "my_shop.toml").write_text(block("toml"), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    quick = tiny_experiment(tmp_path).model_dump(mode="json", include={"teacher": {"options", "epochs", "max_length"}})
    changes = {f"teacher.{key}": value for key, value in quick["teacher"].items()}
    result = run(Experiment.read("my_shop.toml", {**changes, "runtime.cache": str(tmp_path / "cache")}))
    printed = capsys.readouterr().out
    assert re.findall(r"my_shop:Damped round (\d) accuracy \d\.\d+", printed) == ["1", "2"]
    summary = result.summary
    assert (summary["dataset"], summary["method"], summary["task"]) == ("my_shop:Reviews", "my_shop:Damped", "category")
    assert summary["student"]["parameters"] == 6 * 2 + 2
    assert load_model(result.student).kind == "my_shop:LetterCounts"


def test_the_documented_method_with_a_state_uses_it_from_the_second_round_on(tiny_experiment, tmp_path, monkeypatch):
    first, second = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)[:2]
    (tmp_path / "momentum_shop.py").write_text(f"{first}\n\n{second}", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    quick = {"controls": [], "federation.method": "momentum_shop:Momentum", "adaptation.enabled": False}

    def weights(rounds, beta):
        changes = {"name": f"after-{rounds}-{beta}", "federation.rounds": rounds, "federation.options": {"beta": beta}}
        return load_model(run(tiny_experiment(tmp_path, {**quick, **changes})).student).state_dict()

    def distance(one, other):
        return max(float((one[name] - value).abs().max()) for name, value in other.items())

    assert distance(weights(1, 0.5), weights(1, 0.0)) == 0.0
    assert distance(weights(2, 0.5), weights(2, 0.0)) > 1e-4
