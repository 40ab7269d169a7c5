"""An experiment is the same in Python, in TOML and as a flat Flower run config; what is wrong in it is named."""

import math
import tomllib
from pathlib import Path

import pytest
import tomli_w
from flwr.common.config import flatten_dict
from hypothesis import given
from hypothesis import strategies as st

from fed_distill.config import CONTROLS, Experiment, parse_setting
from fed_distill.errors import ConfigError

TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="/\x00", exclude_categories=["Cs", "Cc"]), max_size=12)
CHANGES = st.fixed_dictionaries(
    {},
    optional={
        "name": st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,9}", fullmatch=True),
        "seed": st.integers(0, 2**40),
        "controls": st.lists(st.sampled_from(CONTROLS), unique=True),
        "data.dataset": TEXTS,
        "data.max_merchants": st.integers(1, 1000),
        "data.public_share": st.floats(0.0, 0.9),
        "data.options": st.dictionaries(TEXTS, st.one_of(st.booleans(), st.integers(-9, 9), TEXTS), max_size=3),
        "student.by_merchant": st.lists(TEXTS, max_size=3),
        "training.server.clip_norm": st.floats(0.1, 10.0) | st.just(math.inf),
        "federation.label": st.one_of(TEXTS, st.sampled_from(["null", "[", "{x", '"', '"quoted"', "true", "1"])).filter(
            lambda text: (
                text not in (".", "..", *CONTROLS, "personal")
                and not text.startswith(("server.", "control.", "federation."))
            )
        ),
        "runtime.cache": TEXTS.filter(bool),
        "runtime.resume": st.booleans(),
    },
)


@given(CHANGES)
def test_an_experiment_survives_toml(changes):
    experiment = Experiment().with_changes(changes)
    read_again = Experiment.model_validate(tomllib.loads(experiment.to_toml()))
    assert read_again == experiment


@given(CHANGES)
def test_an_experiment_survives_a_run_config_of_flower(changes):
    """Which Flower writes as TOML, reads and flattens."""
    experiment = Experiment().with_changes(changes)
    config = flatten_dict(tomllib.loads(tomli_w.dumps(experiment.to_run_config())))
    assert all(isinstance(value, (bool, int, float, str)) for value in config.values())
    assert Experiment.from_run_config(config) == experiment


def test_settings_of_a_run_config_win_over_its_experiment():
    config = Experiment().with_changes({"federation.rounds": 7}).to_run_config()
    settings = 'federation.rounds = 3, name = "quick", data.options = {x = [1, 2]}, privacy = {unit = "none"}'
    changed = Experiment.from_run_config(config | {"set": settings})
    assert (changed.federation.rounds, changed.name, changed.data.options) == (3, "quick", {"x": [1, 2]})
    assert changed.federation.method == Experiment().federation.method
    assert Experiment.from_run_config({}) == Experiment.from_run_config({"set": ""}) == Experiment()


@pytest.mark.parametrize("value", [math.inf, -math.inf, [1.0, {"deep": math.inf}]])
def test_options_that_are_infinite_survive(value):
    experiment = Experiment().with_changes({"data.options": {"bound": value}})
    assert experiment.data.options == {"bound": value}
    assert Experiment.parse(tomllib.loads(experiment.to_toml())) == experiment
    assert Experiment.from_run_config(experiment.to_run_config()) == experiment


def test_a_path_in_the_users_home_is_read_as_in_a_shell(monkeypatch):
    monkeypatch.setenv("HOME", "/home/anna")
    runtime = Experiment.parse({"runtime": {"folder": "~/runs", "cache": "~nobody-of-this-name/x"}}).runtime
    assert (runtime.folder, runtime.cache) == (Path("/home/anna/runs"), Path("~nobody-of-this-name/x"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"experiment": "name = "}, "experiment is not valid TOML"),
        ({"set": "federation.rounds"}, "run config key set must be like"),
        ({"set": "x = 1\ny = 2"}, "run config key set must be like"),
        ({"set": "federation.round = 3"}, "federation.round"),
        ({"federation.rounds": 3}, r"unknown run config key 'federation\.rounds'"),
    ],
)
def test_a_wrong_run_config_is_told_by_its_key(config, message):
    with pytest.raises(ConfigError, match=message):
        Experiment.from_run_config(config)


def write(tmp_path, text):
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sede = 1", "unknown key sede"),
        ("[federation]\nruonds = 3", r"unknown key federation\.ruonds"),
        ("[federation]\nrounds = 'three'", r"federation\.rounds must be a whole number"),
        ("[federation]\nrounds = 0", r"federation\.rounds must be at least 1"),
        ("[federation]\nparticipation = 0.0", r"federation\.participation must be greater than 0"),
        ("[federation]\nlabel = 'a/b'", r"federation\.label must be text that matches"),
        ("data = 3", "data must be a table"),
        ("seed = 99999999999999999999", "seed must be at most 4611686018427387904"),
        ("repeats = 99999999999999999999", "repeats must be at most"),
        ("[runtime]\nfolder = 3", r"runtime\.folder must be a path"),
        (
            "[base]\n[[axis]]\nkey = 'seed'",
            r"has \[\[axis\]\] and is not an experiment: use `fed-distill study .*mine.toml`",
        ),
        (
            "[base]\n[[search]]\nkey = 'seed'",
            r"has \[\[search\]\] and is not an experiment: use `fed-distill tune .*mine.toml`",
        ),
        ("name = 'two words'", "name must be text that matches"),
        (
            "controls = ['server', 'oracle']",
            r"controls\.2 must be 'student', 'server', 'local', 'pooled', 'fedavg', 'oracle-proxy', 'bm25', "
            "'popularity', 'repeat' or 'item-knn', not 'oracle'",
        ),
        (
            "[data]\nvalid_share = 0.5\ntest_share = 0.5",
            r"data\.valid_share and data\.test_share leave no training data",
        ),
        ("[[compare]]\nlabel = 'a'\n[[compare]]\nruonds = 1", "table 2 of compare: unknown key ruonds"),
        ("[[compare]]\nrounds = 'x'", "table 1 of compare: rounds must be a whole number"),
        ("[[compare]]\nrounds = 3", "two federations are called 'fedavg-kd': set another `label` for one of them"),
        (
            "controls = ['item-knn']\n[data]\nclients = 'elsewhere'",
            "control 'item-knn' requires the clients' data, .* remove 'item-knn' from controls",
        ),
        ("[federation]\nlabel = 'pooled'", "'pooled', which is another row's name .* `label`"),
        ("[federation]\nmethod = 'local'", "'local', which is another row's name"),
        ("[federation]\nlabel = 'fedavg'", "'fedavg', which is another row's name .* `label`"),
        (f"name = '{'a' * 201}'", "name must be at most 200 characters long"),
        ("[training.server]\nepochs = inf", r"training\.server\.epochs must be a finite number"),
        ("[training.server]\nclip_norm = nan", r"training\.server\.clip_norm must be greater than 0"),
        (
            "[training.merchants]\nmomentum = 0.9",
            r"training\.merchants: momentum requires optimizer sgd, not adamw: remove momentum",
        ),
        (
            "[training.merchants]\noptimizer = 'sgd'\nmomentum = 1.0",
            r"training\.merchants\.momentum must be less",
        ),
        ("[byzantine]\nfraction = 1.0", r"byzantine\.fraction must be less than 1"),
        (
            "controls = []\n[data]\nclients = 'elsewhere'\n[byzantine]\nfraction = 0.3",
            r"\[byzantine\] is for simulations, but data\.clients = 'elsewhere' has real merchants",
        ),
        (
            "[federation]\nmethod = 'fedavg'",
            "'fedavg' is also the control of that name, which has no teacher: set start = 'labels' for it, or another",
        ),
        (
            "[federation]\nmethod = 'fedavg'\nstart = 'labels'\n[byzantine]\nfraction = 0.3",
            "'fedavg' is also the control of that name, which has no Byzantine merchants: set another `label`",
        ),
        (
            "[federation]\nmethod = 'fedavg'\nstart = 'labels'\n[privacy]\nunit = 'example'\nepsilon = 1.0",
            "'fedavg' is also the control of that name, which has neither privacy nor compression: set another `label`",
        ),
        (
            "[[compare]]\nmethod = 'fedavg'\nstart = 'labels'\ntransport = { weights = ['sign'] }",
            "which has neither privacy nor compression",
        ),
        ("[[teacher.ensemble]]\nmodel = 'bert-small'", "ensemble has a teacher twice"),
        ("[[teacher.ensemble]]\nseed = 1\n[[teacher.ensemble]]\nseed = 1", "ensemble has a teacher twice"),
        (
            "[distill]\ntransfer = ['decisions', 'hints']\nfinal_temperature = 1.0",
            r"final_temperature has no effect with transfer = \['decisions', 'hints'\]: remove it",
        ),
        ("[data.clicks]\nbias = 2.0", "bias has no effect with sessions = 0: remove it"),
        ("[data]\nproxy_neighbours = 0.5", "proxy_neighbours has no effect with proxy_from = .public.: remove it"),
        ("[distill]\nassistant_weight = 2.0", "assistant_weight has no effect with no assistants: remove it"),
        ("[training.unlabeled]\nconfidence = 0.5", "confidence has no effect with epochs = 0: remove it"),
        ("name = ", "is not valid TOML"),
    ],
)
def test_a_mistake_in_a_file_names_the_file_and_the_key(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=message) as caught:
        Experiment.read(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "title",
    [
        ".",
        "..",
        "personal",
        "personal of fedavg-kd",
        "server.two-tower",
        "federation.fedmd",
        "level.student",
        "商" * 99,
    ],
)
def test_a_title_that_no_row_of_a_table_has_is_taken(title):
    experiment = Experiment.parse({"compare": [{"label": title}], "adaptation": {"personal": True}})
    assert list(experiment.arms())[:2] == ["fedavg-kd", title]
    assert len(experiment.arms()) == 6


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read experiment .*none\.toml: No such file"):
        Experiment.read(tmp_path / "none.toml")


def test_overrides_win_over_the_file_and_make_missing_tables(tmp_path):
    path = write(tmp_path, "[federation]\nrounds = 3\n")
    experiment = Experiment.read(path, {"federation.rounds": 5, "student.options.width": 16})
    assert experiment.federation.rounds == 5
    assert experiment.student.options == {"width": 16}


def test_an_override_below_a_value_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"seed\.deep: seed is a value, not a table"):
        Experiment.read(write(tmp_path, "seed = 1"), {"seed.deep": 2})


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("federation.rounds=3", "federation.rounds", 3),
        ("federation.participation = 0.5", "federation.participation", 0.5),
        ("runtime.resume=true", "runtime.resume", True),
        ('controls=["server"]', "controls", ["server"]),
        ("data.dataset=pricerunner", "data.dataset", "pricerunner"),
        ("federation.label=a=b", "federation.label", "a=b"),
        ("teacher.options={layers=1}", "teacher.options", {"layers": 1}),
    ],
)
def test_settings_are_toml_or_plain_text(text, key, value):
    assert parse_setting(text) == (key, value)


@pytest.mark.parametrize("text", ["federation.rounds", "=3", "", ".rounds=3", "federation..rounds=3"])
def test_a_setting_without_key_or_value_is_refused(text):
    with pytest.raises(ConfigError, match="--set requires key=value"):
        parse_setting(text)


def with_compare(*tables, **federation):
    return Experiment.parse({"federation": federation, "compare": list(tables)})


def test_compared_federations_inherit_what_they_do_not_override():
    experiment = with_compare({"aggregator": "fedadam"}, method="fedavg", rounds=7, participation=0.5, label="main")
    compared = experiment.federations()[1]
    assert (compared.method, compared.rounds, compared.participation) == ("fedavg", 7, 0.5)
    assert compared.title == "fedavg+fedadam"


def test_options_are_inherited_by_the_same_method_and_aggregator_only():
    experiment = with_compare(
        {"label": "same"},
        {"method": "fedavg"},
        {"aggregator": "fedmedian"},
        method="fedprox",
        options={"proximal_mu": 0.5},
        aggregator="fedadam",
        aggregator_options={"eta": 0.1},
    )
    _, same, other_method, other_aggregator = experiment.federations()
    assert (same.options, same.aggregator_options) == ({"proximal_mu": 0.5}, {"eta": 0.1})
    assert (other_method.options, other_method.aggregator_options) == ({}, {"eta": 0.1})
    assert (other_aggregator.options, other_aggregator.aggregator_options) == ({"proximal_mu": 0.5}, {})


def test_arms_are_the_federations_and_the_controls_that_merchants_train():
    experiment = Experiment.parse(
        {
            "federation": {"method": "fedavg-kd", "rounds": 4, "participation": 0.5, "options": {"local_epochs": 3}},
            "compare": [{"method": "fedmd"}],
            "training": {"local": {"epochs": 5}},
            "adaptation": {"personal": True, "personal_epochs": 2},
        }
    )
    arms = experiment.arms()
    assert list(arms) == ["fedavg-kd", "fedmd", "fedavg", "local", "fedavg-kd/personal", "fedmd/personal"]
    fedavg = arms["fedavg"]
    assert (fedavg.method, fedavg.rounds, fedavg.participation) == ("fedavg", 4, 0.5)
    assert (fedavg.options, fedavg.aggregator, fedavg.start) == ({"local_epochs": 3}, "fedavg", "labels")
    assert (arms["local"].rounds, arms["local"].options) == (1, {"local_epochs": 5})
    assert arms["fedmd/personal"].options == {"local_epochs": 2}


def test_fedavg_without_a_teacher_aggregates_as_the_main_federation():
    """Otherwise a difference to it would be that of aggregators, too."""
    averaging = {"aggregator": "fedadam", "aggregator_options": {"eta": 0.1}}
    tables = {"federation": {"method": "fedavg-kd", **averaging}, "compare": [{"aggregator": "fedsubavg"}]}
    fedavg = Experiment.parse(tables).arms()["fedavg"]
    assert (fedavg.aggregator, fedavg.aggregator_options, fedavg.start) == ("fedadam", {"eta": 0.1}, "labels")


def test_a_federation_called_fedavg_is_its_own_control():
    tables = {"federation": {"method": "fedavg", "start": "labels", "rounds": 9}, "controls": ["fedavg"]}
    experiment = Experiment.parse(tables)
    assert list(experiment.arms()) == ["fedavg"]
    assert experiment.arms()["fedavg"].rounds == 9


def test_tiny_makes_everything_small_and_keeps_what_is_compared():
    experiment = Experiment.parse(
        {
            "name": "big",
            "repeats": 5,
            "teacher": {"model": "minilm", "epochs": 3},
            "data": {"dataset": "pricerunner", "max_merchants": 3},
            "federation": {"rounds": 15, "aggregator": "fedsubavg"},
            "compare": [{"method": "fedmd", "rounds": 30}, {"method": "feddf", "rounds": 1}],
        }
    )
    tiny = experiment.tiny()
    assert (tiny.name, tiny.repeats, tiny.teacher.model) == ("big-tiny", 1, "bert-small")
    assert (tiny.data.dataset, tiny.data.max_merchants, tiny.data.max_examples) == ("pricerunner", 3, 200)
    assert [(one.title, one.rounds) for one in tiny.federations()] == [
        ("fedavg-kd+fedsubavg", 2),
        ("fedmd+fedsubavg", 2),
        ("feddf+fedsubavg", 1),
    ]


def test_tiny_leaves_what_it_is_told_to_keep():
    experiment = Experiment.parse(
        {
            "name": "big",
            "teacher": {"model": "minilm", "epochs": 3},
            "data": {"proxy_size": 3000},
            "federation": {"rounds": 15},
            "compare": [{"method": "fedmd", "rounds": 30}, {"method": "feddf"}],
        }
    )
    tiny = experiment.tiny(["name", "data.proxy_size", "federation.rounds", "teacher.options.layers", "training"])
    assert (tiny.name, tiny.data.proxy_size, tiny.data.max_examples) == ("big-tiny", 3000, 200)
    assert [(one.method, one.rounds) for one in tiny.federations()] == [("fedavg-kd", 15), ("fedmd", 2), ("feddf", 15)]
    assert (tiny.teacher.model, tiny.teacher.options, tiny.teacher.epochs) == ("minilm", {}, 1)
    assert tiny.training == experiment.training
    assert experiment.tiny(["teacher.epochs"]).teacher.epochs == 3
    assert experiment.tiny(["teacher.epochs"]).teacher.model == "bert-small"
    assert experiment.tiny(["federation.roundsome", "data.proxy"]) == experiment.tiny()


def test_a_student_that_is_dealt_keeps_default_options():
    student = Experiment.parse(
        {"student": {"model": "lstm", "options": {"width": 8}, "by_merchant": ["two-tower", "lstm", "two-tower"]}}
    ).student
    assert student.models() == ["lstm", "two-tower"]
    assert student.options_of("lstm") == {"width": 8}
    assert student.options_of("two-tower") == {}


def test_the_fedavg_control_is_stopped_and_validated_as_the_federation_is():
    federation = {"method": "fedmd", "rounds": 9, "validate_every": 2, "patience": 3, "participation": 0.5}
    control = Experiment.parse({"federation": federation}).arms()["fedavg"]
    assert control.model_dump(include=set(federation)) == {**federation, "method": "fedavg"}


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"teacher": {"combine": "confidence"}}, "combine = 'confidence' requires several teachers"),
        ({"teacher": {"combine": "similarity", "ensemble": [{"seed": 1}]}}, "identical without domains"),
        (
            {
                "distill": {"final_temperature": 1.0},
                "training": {"server": {"epochs": 1}},
                "controls": ["server"],
                "adaptation": {"enabled": False},
            },
            "set training.server.epochs above 1",
        ),
        ({"training": {"server": {"momentum": 0.9}}}, r"training\.server: momentum requires optimizer sgd, not adamw"),
        ({"training": {"pooled": {"momentum": 0.9}}}, "training: pooled: momentum requires optimizer sgd, not adamw"),
        ({"training": {"local": {"momentum": 0.9}}}, "training: local: momentum requires optimizer sgd, not adamw"),
        ({"adaptation": {"momentum": 0.9}}, "adaptation: momentum requires optimizer sgd, not adamw"),
        ({"teacher": {"ensemble": [{"momentum": 0.9}]}}, "teacher: momentum requires optimizer sgd, not adamw"),
        (
            {"privacy": {"unit": "example", "epsilon": 1.0, "training": {"momentum": 0.9}}},
            r"privacy\.training: momentum requires optimizer sgd, not adamw",
        ),
    ],
)
def test_what_would_do_nothing_is_refused(tables, message):
    with pytest.raises(ConfigError, match=message):
        Experiment.parse(tables)


def test_a_temperature_that_moves_has_time_to_in_a_tiny_version():
    assert Experiment.parse({"distill": {"final_temperature": 1.0}}).tiny().training.server.epochs == 2


def test_the_app_of_flower_has_the_quickstart_as_its_run_config():
    root = Path(__file__).parents[2]
    config = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["flwr"]["app"]["config"]
    assert Experiment.from_run_config(config) == Experiment.read(root / "experiments" / "quickstart.toml")


def test_private_federations_may_train_in_a_way_of_their_own():
    private = {"unit": "example", "epsilon": 2.0, "training": {"optimizer": "sgd", "learning_rate": 5.0}}
    experiment = Experiment.parse(
        {"privacy": private, "training": {"merchants": {"learning_rate": 0.01, "batch_size": 8}}}
    )
    own = experiment.training_of("fedavg-kd")
    assert (own.optimizer, own.learning_rate, own.batch_size) == ("sgd", 5.0, 8)
    plain = experiment.training.of_merchants()
    assert (plain.optimizer, plain.learning_rate, plain.batch_size) == ("adamw", 0.01, 8)
    assert experiment.training_of("fedavg") == experiment.training_of("local") == plain


@pytest.mark.parametrize(
    ("privacy", "message"),
    [
        ({"epsilon": 1.0}, "epsilon requires a unit"),
        ({"unit": "example"}, "requires either epsilon or noise_multiplier: set one"),
        ({"unit": "example", "epsilon": 1.0, "noise_multiplier": 1.0}, "both are set, remove one"),
        ({"unit": "example", "epsilon": 0.0}, r"privacy\.epsilon"),
        ({"unit": "example", "epsilon": 1.0, "delta": 1.0}, r"privacy\.delta"),
    ],
)
def test_half_a_promise_is_refused(privacy, message):
    with pytest.raises(ConfigError, match=message):
        Experiment.parse({"privacy": privacy})


def test_changes_are_read_and_not_written_to():
    options = {"layers": 2}
    changed = Experiment().with_changes({"student.options": options, "student.options.lora_rank": 4})
    assert changed.student.options == {"layers": 2, "lora_rank": 4}
    assert options == {"layers": 2}


def test_controls_wait_for_merchants_as_the_federation_does():
    """Whose answers the server takes is said once, for all that is compared; what is compared may say otherwise."""
    changes = {"federation": {"deadline": 5.0, "minimum_share": 0.7, "retries": 9, "pause": 0.5}}
    other = {"label": "hasty", "deadline": 1.0}
    arms = Experiment().with_changes({**changes, "adaptation.personal": True, "compare": [other]}).arms()
    waits = {title: (arm.deadline, arm.minimum_share, arm.retries, arm.pause) for title, arm in arms.items()}
    assert waits.pop("hasty") == (1.0, 0.7, 9, 0.5)
    assert set(waits.values()) == {(5.0, 0.7, 9, 0.5)}
    assert {"fedavg", "local", "fedavg-kd/personal"} < waits.keys()
