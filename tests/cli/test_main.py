"""The command line: help with examples, one line and exit code 2 for a user's mistake, and lists of everything."""

import json
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fed_distill.adversaries import ATTACKS
from fed_distill.aggregation import AGGREGATORS
from fed_distill.cli.listing import description
from fed_distill.cli.main import app
from fed_distill.config import Experiment
from fed_distill.data import DATASETS
from fed_distill.methods import METHODS
from fed_distill.methods.fedavg import FedAvg
from fed_distill.models import STUDENTS, TEACHERS
from fed_distill.transport.coding import SOFT_LABEL_STAGES, UPDATE_STAGES

ROOT = Path(__file__).parent.parent.parent
QUICKSTART = str(ROOT / "experiments" / "quickstart.toml")


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("NO_COLOR", "1")


COMMANDS = [
    ["run"],
    ["config"],
    ["report"],
    ["methods"],
    ["models"],
    ["data", "describe"],
    ["data", "proxy"],
    ["data", "list"],
    ["init"],
    ["keys"],
    ["compare"],
    ["experiments", "ls"],
    ["experiments", "cp"],
]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_the_help_of_every_command_has_an_example(words):
    shown = CliRunner().invoke(app, [*words, "--help"])
    assert shown.exit_code == 0
    assert f"Example: fed-distill {' '.join(words)}" in " ".join(shown.output.split())


def test_the_help_names_every_command():
    shown = CliRunner().invoke(app, ["--help"])
    assert all(words[0] in shown.output for words in COMMANDS)
    assert "Start with: fed-distill init TABLE, then data describe, run --tiny, run." in shown.output


def mistake(answer):
    """The one line of a user's mistake, after the first line of a run that began to load."""
    code, out, errors = answer
    assert code == 2
    assert out == ""
    assert "Traceback" not in errors
    (line,) = (one for one in errors.strip().splitlines() if ": loading libraries" not in one)
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize("command", ["run", "config"])
@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("federation.method=fedagv", "unknown method 'fedagv'; did you mean fedavg"),
        ("federation.aggregator=nonsense", "unknown aggregator 'nonsense'; did you mean"),
        ("byzantine.attack=sing-flip", "unknown attack 'sing-flip'; did you mean sign-flip"),
        ("data.dataset=marketplaec", "unknown dataset 'marketplaec'; did you mean marketplace"),
        ('runtime.callbacks=["progres"]', "unknown callback 'progres'; did you mean progress"),
        ("student.model=two-towr", "unknown student 'two-towr'; did you mean two-tower"),
        ("teacher.model=minilmm", "did you mean minilm?"),
    ],
)
def test_an_unknown_name_is_found_before_anything_is_imported(entered, command, setting, problem):
    assert problem in mistake(entered(command, QUICKSTART, "--set", setting))


@pytest.mark.parametrize("words", [["run"], ["config"], ["run", "--tiny"], ["config", "--tiny"]], ids=" ".join)
def test_a_mistyped_teacher_is_found_although_a_tiny_version_has_another(entered, words):
    problem = mistake(entered(*words, QUICKSTART, "--set", "teacher.model=bert-smal"))
    assert problem.startswith("error: unknown teacher 'bert-smal'")


@pytest.mark.parametrize(("command", "file"), [("study", "features"), ("tune", "tune")])
def test_a_mistyped_teacher_of_a_sweep_is_found_in_its_tiny_version_too(entered, command, file, tmp_path):
    path = ROOT / "experiments" / f"{file}.toml"
    words = [command, str(path), "--tiny", "--out", str(tmp_path / "out"), "--set", "teacher.model=bert-smal"]
    assert "unknown teacher 'bert-smal'" in mistake(entered(*words))
    assert not (tmp_path / "out").exists()


def test_the_version_is_printed(entered):
    assert entered("--version") == (0, f"fed-distill {version('fed-distill')}\n", "")


def test_a_custom_part_is_not_imported_to_print_an_experiment(entered):
    code, out, _ = entered("config", QUICKSTART, "--set", "federation.method=nowhere:Nothing")
    assert (code, tomllib.loads(out)["federation"]["method"]) == (0, "nowhere:Nothing")


def test_a_wrong_key_is_one_line_and_exit_code_2(entered, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("[federation]\nruonds = 3\n", encoding="utf-8")
    assert (
        mistake(entered("run", str(path)))
        == f"error: {path}: unknown key federation.ruonds; did you mean federation.rounds?"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "federation.rounds=many"], "federation.rounds must be a whole number"),
        (["--set", "federation.rounds"], "--set requires key=value, for example federation.rounds=3"),
        (["--set", "federation.method=fedavgg"], "unknown method 'fedavgg'; did you mean fedavg"),
        (["--set", "data.dataset=marktplace"], "unknown dataset 'marktplace'; did you mean marketplace"),
        (["--set", "data.task=translate"], "dataset 'marketplace' does not support data.task = 'translate'"),
        (["--set", "data.options.merchant=3"], "dataset 'marketplace' has no option 'merchant'"),
        (["--set", "runtime.callbacks=[\"progres\"]"], "unknown callback 'progres'; did you mean progress"),
        (["--set", "seed=99999999999999999999"], "seed must be at most"),
        (["--set", "data=marketplace"], "data must be a table"),
        (["--set", "runtime.folder=3"], "runtime.folder must be a path"),
        (["--set", "federation.label=3"], "federation.label must be a string, not 3: write it in quotes"),
        (["--set", "data.options.rows=x"], "dataset 'marketplace', option rows must be a whole number"),
        (["--set", "privacy.limits=none.toml", "--tiny"], "cannot read the limits in none.toml"),
        (["--name", "two words"], "name must be text that matches"),
        (["--name", "a/b"], "name must be text that matches '^[A-Za-z0-9][A-Za-z0-9._-]*$', not 'a/b'"),
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


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "cannot read experiment {path}: Is a directory"),
        (b"name = 'sp\xe4t'", "{path} is not valid TOML: line 1 is not in UTF-8: save the file in UTF-8"),
        (b"name = ", "{path} is not valid TOML: Invalid value (at end of document)"),
        (b"[[search]]", "{path} has [[search]] and is not an experiment: use `fed-distill tune {path}`"),
    ],
)
@pytest.mark.parametrize("words", [["run"], ["config"], ["config", "--flower"], ["data", "describe"]], ids=" ".join)
def test_a_file_that_is_no_experiment_is_named_by_every_command(entered, tmp_path, words, content, problem):
    path = tmp_path / "mine.toml"
    path.mkdir() if content is None else path.write_bytes(content)
    assert mistake(entered(*words, str(path))) == f"error: {problem.format(path=path)}"


@pytest.fixture
def elsewhere(tmp_path):
    """An experiment whose merchants are at real sites."""
    path = tmp_path / "server.toml"
    data = "[data]\nclients = 'elsewhere'\nproxy_size = 20\noptions = { merchants = 6, rows = 40 }\n"
    path.write_text(f"controls = ['server']\n{data}[runtime]\nfolder = '{tmp_path / 'runs'}'\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("options", [[], ["--tiny"], ["--set", "runtime.sites=2"]], ids=str)
def test_merchants_that_are_elsewhere_are_not_simulated(entered, elsewhere, options):
    told = mistake(entered("run", elsewhere, *options))
    assert told.startswith("error: data.clients = 'elsewhere' has no merchants to simulate")
    assert "fed-distill sites run" in told
    assert not (elsewhere.parent / "runs").exists()


def test_an_audit_of_merchants_that_are_elsewhere_is_refused(entered, elsewhere, tmp_path):
    folder = tmp_path / "finished"
    folder.mkdir()
    (folder / "experiment.toml").write_bytes(elsewhere.read_bytes())
    (folder / "summary.json").write_text("{}", encoding="utf-8")
    told = mistake(entered("audit", folder))
    assert told == "error: an audit requires the merchants' data, which are at this run's sites"


def test_the_public_part_is_described_where_the_merchants_are_elsewhere(entered, elsewhere, tmp_path):
    code, out, errors = entered("data", "describe", elsewhere, "--out", tmp_path / "pictures")
    assert (code, errors) == (0, "")
    assert "the merchants are at remote sites" in out
    assert not (tmp_path / "pictures").exists()
    small = ["--set", "data.options={merchants=6, rows=40}", "--set", "data.proxy_size=20"]
    code, out, _ = entered("data", "describe", "marketplace", "--set", "data.clients=elsewhere", *small)
    assert (code, "the merchants are at remote sites" in out) == (0, True)


@pytest.mark.parametrize("options", [[], ["--flower"], ["--tiny", "--flower"]], ids=str)
def test_the_experiment_of_merchants_that_are_elsewhere_is_printed(entered, elsewhere, options):
    code, out, _ = entered("config", elsewhere, *options)
    assert code == 0
    assert "elsewhere" in out


def test_too_little_memory_is_one_line(entered, monkeypatch):
    def too_large(experiment):
        raise MemoryError("Unable to allocate 909. TiB")

    monkeypatch.setattr("fed_distill.experiment.simulation.run", too_large)
    assert mistake(entered("run", QUICKSTART)) == "error: not enough memory for this: Unable to allocate 909. TiB"


def test_an_interrupted_run_says_how_to_go_on(entered, monkeypatch):
    def interrupted(experiment):
        raise KeyboardInterrupt

    monkeypatch.setattr("fed_distill.experiment.simulation.run", interrupted)
    code, out, errors = entered("run", QUICKSTART)
    assert (code, out) == (130, "")
    assert errors.splitlines()[-1] == "stopped; continue with the same command and --resume"


def test_a_file_can_be_tested_again(entered, monkeypatch, tmp_path):
    def interrupted(experiment):
        (experiment.runtime.folder / experiment.name).mkdir(parents=True, exist_ok=True)
        raise KeyboardInterrupt

    monkeypatch.setattr("fed_distill.experiment.simulation.run", interrupted)
    monkeypatch.setattr("fed_distill.cli.main._announce", lambda experiment: started.append(experiment.name))
    started = []
    line = ["run", QUICKSTART, "--tiny", "--set", f"runtime.folder={tmp_path}"]
    for _ in range(3):
        errors = entered(*line)[2]
    assert started == ["quickstart-tiny", "quickstart-tiny-2", "quickstart-tiny-3"]
    again = tmp_path / "quickstart-tiny-3" / "experiment.toml"
    assert errors.splitlines()[-1] == f"stopped; continue with fed-distill run {again} --resume"
    entered(*line, "--resume")
    entered(*line, "--set", "runtime.resume=true")
    entered(*line, "--name", "quickstart")
    assert started[3:] == ["quickstart-tiny"] * 3


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


def test_the_flower_run_config_means_the_same(entered):
    code, out, _ = entered("config", QUICKSTART, "--flower")
    flat = tomllib.loads(out)
    assert code == 0
    assert all(isinstance(value, (bool, int, float, str)) for value in flat.values())
    assert Experiment.from_run_config(flat) == Experiment.read(QUICKSTART)


def test_relative_paths_are_absolute_in_a_flower_run_config(entered, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    changes = {
        "runtime.folder": "there",
        "runtime.cache": "~/cache",
        "privacy.limits": "../limits.toml",
        "data.dataset": "table",
        "data.options": "{path = 'data/sales.csv'}",
    }
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    settings = [word for key, value in changes.items() for word in ("--set", f"{key}={value}")]
    config = tomllib.loads(entered("config", QUICKSTART, "--flower", *settings)[1])
    found = tomllib.loads(config["experiment"])
    assert found["runtime"]["folder"] == f"{tmp_path}/there"
    assert found["runtime"]["cache"] == f"{tmp_path}/home/cache"
    assert found["privacy"]["limits"] == f"{tmp_path}/../limits.toml"
    assert found["data"]["options"] == {"path": f"{tmp_path}/data/sales.csv"}
    nested = tomllib.loads(entered("config", QUICKSTART, *settings)[1])
    assert (nested["runtime"]["folder"], nested["data"]["options"]["path"]) == ("there", "data/sales.csv")


def test_what_is_set_wins_over_tiny(entered):
    settings = ["--set", "data.proxy_size=300", "--set", "federation.rounds=7", "--set", "teacher.options.layers=3"]
    tables = tomllib.loads(entered("config", QUICKSTART, "--tiny", "--set", "teacher.model=bert-small", *settings)[1])
    assert (tables["name"], tables["data"]["proxy_size"], tables["federation"]["rounds"]) == ("quickstart-tiny", 300, 7)
    assert tables["teacher"]["options"] == {"layers": 3}
    assert (tables["teacher"]["epochs"], tables["data"]["max_examples"]) == (1, 200)


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


class Mine(FedAvg):
    """Mine is so."""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["methods", "expert-fd"], ["method expert-fd", "DaFKD", "answer_share: share of", "    answer_share=0.25"]),
        (
            ["methods", "fedavg"],
            ["method fedavg", "aggregator fedavg", "McMahan et al.", "    weight='examples'"],
        ),
        (["methods", "svd"], ["weight stage svd", "    rank"]),
        (
            ["methods", "tests.cli.test_main:Mine"],
            ["method tests.cli.test_main:Mine", "Mine is so.", "    local_epochs=1.0"],
        ),
        (["models", "bert-small"], ["teacher bert-small", "    layers="]),
        (["data", "list", "wands"], ["dataset wands", "    path"]),
    ],
)
def test_a_part_is_described_with_its_paper_and_options(entered, words, said):
    """In all registries of the command in which it is."""
    code, out, errors = entered(*words)
    assert code == 0, errors
    assert all(text in out for text in said)


@pytest.mark.parametrize("words", [["methods", "fedavgs"], ["models", "two-towers"], ["data", "list", "marketplaces"]])
def test_a_part_that_does_not_exist_is_an_error_with_near_names(entered, words):
    code, out, errors = entered(*words)
    assert (code, out) == (2, "")
    assert f"nothing is called {words[-1]!r}; did you mean {words[-1][:-1]}" in errors


def test_every_part_can_be_described():
    for registry in (METHODS, AGGREGATORS, UPDATE_STAGES, SOFT_LABEL_STAGES, TEACHERS, STUDENTS, DATASETS, ATTACKS):
        for name in registry:
            assert description(registry, name).startswith(f"{registry.kind} {name}\n\n")


def test_every_listed_part_says_what_it_is(entered):
    out = entered("methods")[1] + entered("models")[1] + entered("data", "list")[1]
    for sentence in (
        "Federated averaging without a teacher",
        "Mean weighted by examples (McMahan et al., AISTATS 2017)",
        "Hashed words and character n-grams, averaged to a vector",
        "Synthetic merchants; tasks relevance, recommend, category (the department of a title), faq",
    ):
        assert sentence in " ".join(out.split())


def test_a_table_in_place_of_a_dataset_is_named_as_what_it_is(entered, tmp_path):
    table = tmp_path / "grades.csv"
    table.write_text("query,title\n", encoding="utf-8")
    code, *texts = entered("data", "describe", str(table))
    assert code == 2
    assert "is a table and no experiment: `fed-distill init" in " ".join(" ".join(texts).split())


def test_a_dataset_is_described_with_account_and_picture(entered, tmp_path):
    small = ["--set", "data.options={merchants=6, rows=40}", "--set", "data.proxy_size=20", "--set", "data.min_rows=10"]
    code, out, _ = entered("data", "describe", "marketplace", *small, "--out", str(tmp_path))
    assert code == 0
    assert "duplicate" in out
    (picture,) = tmp_path.iterdir()
    assert picture.suffix in (".png", ".svg")
    assert picture.stat().st_size > 1000


def test_a_proxy_set_is_written_labelled_by_somebody_and_read_as_a_teacher(entered, tmp_path):
    small = [
        "--set", "data.options={merchants=8, rows=60}", "--set", "data.proxy_size=50", "--set", "data.min_rows=10",
        "--set", "data.public_labels=1.0", "--set", "data.client_labels=1.0",
    ]  # fmt: skip
    pairs = tmp_path / "pairs.csv"
    code, out, errors = entered("data", "proxy", QUICKSTART, *small, "--out", str(pairs))
    assert (code, out, errors) == (0, f"50 examples of the proxy set: {pairs}\n", "")
    header, *rows = pairs.read_text(encoding="utf-8").splitlines()
    assert header == "text,pair" and len(rows) == 50
    answers = tmp_path / "answers.csv"
    answers.write_text("\n".join([f"{header},answer", *(f"{row},exact" for row in rows)]), encoding="utf-8")
    options = f'{{path="{answers}", columns={{text="text", pair="pair", label="answer"}}}}'
    teacher = ["--set", "teacher.model=labels-file", "--set", f"teacher.options={options}", "--set", "teacher.steps=0"]
    places = ["--set", f"runtime.folder={tmp_path / 'runs'}", "--set", f"runtime.cache={tmp_path / 'cache'}"]
    rest = ["--set", "federation.rounds=1", "--set", "compare=[]", "--set", "controls=['server']"]
    code, out, errors = entered("run", QUICKSTART, *small, *teacher, *places, *rest)
    assert code == 0 and "labels for the proxy set: 50 of 50" in errors and "are left out" not in errors
    assert entered("data", "proxy", QUICKSTART, *small, "--out", "pairs.parquet")[0] == 2


def test_a_tiny_run_then_its_report_and_a_second_run_of_that_name(entered, tmp_path):
    places = ["--set", f"runtime.folder={tmp_path / 'runs'}", "--set", f"runtime.cache={tmp_path / 'cache'}"]
    quick = ["--set", "runtime.callbacks=[]", "--set", "data.options={merchants=8, rows=60}"]
    line = ["run", QUICKSTART, "--tiny", "--name", "mine", *places, *quick]
    folder = tmp_path / "runs" / "mine-tiny"
    code, out, errors = entered(*line)
    assert (code, errors) == (0, "")
    assert out.splitlines()[-1] == f"report: {folder / 'report.html'}"
    assert "its results are meaningless" in out
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert (summary["rounds"], list(summary["controls"])) == (2, Experiment.read(Path(QUICKSTART)).controls)

    (folder / "report.html").unlink()
    code, out, _ = entered("report", str(folder), "--markdown")
    assert code == 0
    assert out.startswith("|")
    assert "| **fedavg-kd** |" in out
    assert (folder / "report.html").is_file()

    assert mistake(entered(*line)).startswith(f"error: {folder} exists: continue this run with --resume")
    assert entered(*line, "--resume")[0] == 0
