"""The command line: help with examples, one line and exit code 2 for a user's mistake, and lists of everything."""

import json
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fed_distill.cli.main import app
from fed_distill.config import Experiment
from fed_distill.data import DATASETS
from fed_distill.merging import AGGREGATORS
from fed_distill.methods import METHODS
from fed_distill.models import STUDENTS, TEACHERS
from fed_distill.transport.coding import SOFT_LABEL_STAGES, UPDATE_STAGES

ROOT = Path(__file__).parent.parent.parent
QUICKSTART = str(ROOT / "experiments" / "quickstart.toml")


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("NO_COLOR", "1")


COMMANDS = [["run"], ["config"], ["report"], ["methods"], ["models"], ["data", "describe"], ["data", "list"]]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_the_help_of_every_command_has_an_example(words):
    shown = CliRunner().invoke(app, [*words, "--help"])
    assert shown.exit_code == 0
    assert f"Example: fed-distill {' '.join(words)}" in " ".join(shown.output.split())


def test_the_help_names_every_command():
    shown = CliRunner().invoke(app, ["--help"])
    assert all(words[0] in shown.output for words in COMMANDS)


def mistake(answer):
    """The one line of a user's mistake."""
    code, out, errors = answer
    assert code == 2
    assert out == ""
    assert "Traceback" not in errors
    (line,) = errors.strip().splitlines()
    assert line.startswith("error: ")
    return line


def test_a_wrong_key_is_one_line_and_exit_code_2(entered, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("[federation]\nruonds = 3\n", encoding="utf-8")
    assert mistake(entered("run", str(path))) == f"error: {path}: unknown key federation.ruonds"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "federation.rounds=many"], "federation.rounds: Input should be a valid integer"),
        (["--set", "federation.rounds"], "--set wants key=value, for example federation.rounds=3"),
        (["--set", "federation.method=fedavgg"], "unknown method 'fedavgg'; did you mean fedavg"),
        (["--set", "data.dataset=marktplace"], "unknown dataset 'marktplace'; did you mean marketplace"),
        (["--set", "data.task=translate"], "dataset 'marketplace' does not offer data.task = 'translate'"),
        (["--set", "data.options.merchant=3"], "dataset 'marketplace' has no option 'merchant'"),
        (["--set", "runtime.callbacks=[\"progres\"]"], "unknown callback 'progres'; did you mean progress"),
        (["--name", "two words"], "name: String should match pattern"),
        (["--resume"], "there is no run in"),
    ],
)  # fmt: skip
def test_a_mistake_on_the_command_line_is_named(entered, tmp_path, arguments, message):
    answer = entered(
        "run", QUICKSTART, "--set", f"runtime.folder={tmp_path}", "--set", "runtime.callbacks=[]", *arguments
    )
    assert message in mistake(answer)
    assert not (tmp_path / "quickstart").exists()


def test_a_missing_file_is_named(entered, tmp_path):
    assert "cannot read experiment" in mistake(entered("run", str(tmp_path / "none.toml")))
    assert "it is not the folder of a run" in mistake(entered("report", str(tmp_path)))


@pytest.mark.parametrize("key", ["runtime.folder", "runtime.cache"])
def test_a_folder_that_is_a_file_is_named(entered, tmp_path, key):
    (tmp_path / "taken").write_text("", encoding="utf-8")
    places = {"runtime.folder": tmp_path / "runs", "runtime.cache": tmp_path / "cache", key: tmp_path / "taken"}
    settings = [word for name, place in places.items() for word in ("--set", f"{name}={place}")]
    code, _, errors = entered("run", QUICKSTART, "--tiny", *settings, "--set", "runtime.callbacks=[]")
    assert code == 2
    assert f"error: cannot use {tmp_path / 'taken'}" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("name", ["[red]mine", "a:b:c"])
def test_a_name_with_brackets_or_colons_is_printed_as_it_is(entered, tmp_path, name):
    path = tmp_path / f"{name}.toml"
    path.write_text("x = 1", encoding="utf-8")
    assert mistake(entered("run", str(path))) == f"error: {path}: unknown key x"


def test_the_complete_experiment_is_printed_as_toml(entered):
    code, out, _ = entered("config", QUICKSTART, "--set", "federation.rounds=3")
    assert code == 0
    expected = Experiment.read(QUICKSTART, {"federation.rounds": 3})
    assert Experiment.parse(tomllib.loads(out)) == expected


def test_the_flower_run_config_is_flat_and_means_the_same(entered):
    code, out, _ = entered("config", QUICKSTART, "--flower")
    flat = tomllib.loads(out)
    assert code == 0
    assert all(isinstance(value, (bool, int, float, str)) for value in flat.values())
    assert Experiment.from_run_config(flat) == Experiment.read(QUICKSTART)


@pytest.mark.parametrize(
    ("words", "registries", "options"),
    [
        (
            ["methods"],
            [METHODS, AGGREGATORS, UPDATE_STAGES, SOFT_LABEL_STAGES],
            ["share=0.01", "classes=1", "proximal_mu=0.01", "proxy_steps=16", "eta=0.01", "num_malicious_nodes=1"],
        ),
        (["models"], [TEACHERS, STUDENTS], ["rows=32768", "ngrams=(3, 4)"]),
        (["data", "list"], [DATASETS], ["merchants=12", "size_spread=0.9", "path (required)", "columns={}"]),
    ],
)
def test_every_registered_name_is_listed_with_its_options(entered, words, registries, options):
    code, out, _ = entered(*words)
    assert code == 0
    first_words = [line.split()[0] for line in out.splitlines() if line.strip()]
    for registry in registries:
        assert f"{registry.kind}s" in out
        assert set(registry) <= set(first_words)
    assert all(option in out for option in options)


def test_every_listed_part_says_what_it_is(entered):
    out = entered("methods")[1] + entered("models")[1] + entered("data", "list")[1]
    for sentence in (
        "Federated averaging without a teacher",
        "Mean weighted by examples (McMahan et al., AISTATS 2017)",
        "Hashed words and character n-grams, averaged to a vector",
        "Generated merchants; tasks relevance, recommend, category (the department of a title) and faq",
    ):
        assert sentence in " ".join(out.split())


def test_a_dataset_is_described_with_account_and_picture(entered, tmp_path):
    small = ["--set", "data.options={merchants=6, rows=40}", "--set", "data.proxy_size=20", "--set", "data.min_rows=10"]
    code, out, _ = entered("data", "describe", "marketplace", *small, "--out", str(tmp_path))
    assert code == 0
    assert "duplicate" in out
    (picture,) = tmp_path.iterdir()
    assert picture.suffix in (".png", ".svg")
    assert picture.stat().st_size > 1000


def test_a_tiny_run_then_its_report_and_a_second_run_of_that_name(entered, tmp_path):
    places = ["--set", f"runtime.folder={tmp_path / 'runs'}", "--set", f"runtime.cache={tmp_path / 'cache'}"]
    quick = ["--set", "runtime.callbacks=[]", "--set", "data.options={merchants=8, rows=60}"]
    line = ["run", QUICKSTART, "--tiny", "--name", "mine", *places, *quick]
    folder = tmp_path / "runs" / "mine-tiny"
    code, out, errors = entered(*line)
    assert (code, errors) == (0, "")
    assert out.splitlines()[-1] == f"report: {folder / 'report.html'}"
    assert "its numbers mean nothing" in out
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert (summary["rounds"], list(summary["controls"])) == (2, ["server", "local", "pooled", "fedavg"])

    (folder / "report.html").unlink()
    code, out, _ = entered("report", str(folder), "--markdown")
    assert code == 0
    assert out.startswith("|")
    assert "| **fedavg-kd** |" in out
    assert (folder / "report.html").is_file()

    assert mistake(entered(*line)).startswith(f"error: {folder} exists already: go on with it by --resume")
    assert entered(*line, "--resume")[0] == 0
