"""JSON lines say where they were said, come once, quote no data at a site, and leave logging as it was."""

import json
import logging
import sys
import warnings
from datetime import UTC, datetime

import pytest
from flwr.common.logger import log as flower_log

from fed_distill import run
from fed_distill.data import load
from fed_distill.errors import ConfigError, DataError, FedDistillError, TrainingError
from fed_distill.logs import JsonLines, escape_logs, log_as, logged, observed
from fed_distill.reporting.callbacks import CallbackList
from fed_distill.reporting.terminal_progress import ProgressBars

LOG = logging.getLogger("fed_distill.somewhere")


def test_a_line_has_time_level_logger_message_and_what_is_known(lines):
    log_as("json")
    before = datetime.now(UTC)
    with observed(run="r", seed=0), observed(federation="fedmd", round=3):
        with observed(merchant="acme"):
            LOG.warning("two\nlines of %s", "text: 手机")
        LOG.info("after")
    LOG.error("outside")
    first, second, third = lines()
    assert before.replace(microsecond=0) <= datetime.fromisoformat(first.pop("time")) <= datetime.now(UTC)
    where = {"run": "r", "seed": 0, "federation": "fedmd", "round": 3}
    said = {"level": "WARNING", "logger": "fed_distill.somewhere", "message": "two\nlines of text: 手机"}
    assert first == {**said, **where, "merchant": "acme"}
    assert {key: second[key] for key in where} == where and "merchant" not in second
    assert set(third) == {"time", "level", "logger", "message"}


def test_flowers_lines_are_json_and_come_once(lines):
    log_as("json")
    log_as("json")
    flower_log(logging.INFO, "a round of %s", "Flower's")
    flower_log(logging.DEBUG, "not shown")
    flower_log(logging.INFO, "")
    warnings.warn("something is old", DeprecationWarning, stacklevel=1)
    said = [(line["logger"], line["level"], line["message"]) for line in lines()]
    assert said[0] == ("flwr", "INFO", "a round of Flower's")
    assert [logger for logger, _, _ in said[1:]] == ["py.warnings"]


def test_other_libraries_are_shown_from_warnings_on(lines):
    log_as("json")
    logging.getLogger("httpx").info("a request")
    logging.getLogger("httpx").warning("a failed request")
    assert [line["message"] for line in lines()] == ["a failed request"]


def state():
    named = [logging.getLogger(name) for name in (None, "flwr", "fed_distill", "server", "clients")]
    return [(list(one.handlers), one.level, one.propagate) for one in named]


def test_logging_is_as_it_was_after_a_run(lines):
    before = state()
    with logged("json", run="r"):
        assert state() != before
    assert state() == before
    with logged("text", run="r"):
        assert state() == before


def test_an_error_that_ends_a_run_says_where_it_was_raised(lines):
    with pytest.raises(TrainingError), logged("json", run="r"), observed(federation="fedmd"), observed(round=2):
        raise TrainingError("the loss is nan; lower the rate")
    (line,) = lines()
    assert (line["level"], line["run"], line["federation"], line["round"]) == ("ERROR", "r", "fedmd", 2)
    assert (line["error"], line["reason"]) == ("TrainingError", "the loss is nan; lower the rate")
    assert "trace" not in line


def test_an_unforeseen_error_has_its_trace(lines):
    with pytest.raises(ZeroDivisionError), logged("json", run="r"):
        _ = 1 / 0
    (line,) = lines()
    assert line["error"] == "ZeroDivisionError"
    assert "_ = 1 / 0" in line["trace"] and line["trace"].endswith("division by zero\n")


def test_in_text_an_error_is_not_said_twice(lines):
    with pytest.raises(ConfigError), logged("text", run="r"):
        raise ConfigError("wrong")
    assert lines() == []


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("cannot parse 'red shoe'"), None),
        (DataError("row 3: 'red shoe' is not a class"), None),
        (FedDistillError("rule hours: 22:00-06:00"), "rule hours: 22:00-06:00"),
    ],
)
def test_at_a_site_no_error_quotes_data(error, reason):
    try:
        raise error
    except Exception:
        record = logging.LogRecord("flwr", logging.ERROR, __file__, 1, "it failed", (), sys.exc_info())
    line = JsonLines(private=True).format(record)
    assert "red shoe" not in line.replace("raise error", "")
    told = json.loads(line)
    assert told["error"] == type(error).__name__ and told.get("reason") == reason
    assert reason or "test_logs.py" in told["trace"]


def test_lines_take_the_place_of_progress(tiny_experiment, tmp_path):
    names = {"runtime.callbacks": ["progress", "log", "tensorboard"]}
    text = CallbackList.of(tiny_experiment(tmp_path, names))
    json_ = CallbackList.of(tiny_experiment(tmp_path, {**names, "runtime.logs": "json"}))
    assert isinstance(text.callbacks[0], ProgressBars)
    assert [type(one).__name__ for one in json_.callbacks] == ["RunLog", "TensorBoard"]


def test_a_run_is_told_in_lines_with_its_rounds_and_no_merchants_text(tiny_experiment, tmp_path, lines):
    changes = {"controls": ["server"], "runtime.callbacks": ["progress"], "runtime.sites": 2}
    experiment = tiny_experiment(tmp_path, {**changes, "runtime.logs": "json"})
    result = run(experiment)
    told = lines()
    assert {line["run"] for line in told} == {"tiny"}
    rounds = [line for line in told if "train_loss" in line.get("facts", {})]
    assert [(line["federation"], line["seed"], line["round"]) for line in rounds] == [
        ("fedavg-kd", 0, 1),
        ("fedavg-kd", 0, 2),
    ]
    recorded = result.rounds["train_loss"].tolist()
    assert [line["facts"]["train_loss"] for line in rounds] == recorded
    asked = [line for line in told if line["message"] == "received a message of type train.merchants"]
    assert [line["site"] for line in asked] == ["0", "1"] * 2
    assert told[-1]["message"] == "run finished" and told[-1]["facts"]["report"].endswith("/tiny/report.html")
    whole = json.dumps(told, ensure_ascii=False)
    texts = {text for merchant in load(experiment.data).merchants.values() for text in merchant.train.texts}
    assert len(texts) > 50 and not [text for text in texts if text in whole]


def test_a_merchant_that_fails_is_named_on_both_sides(tiny_experiment, tmp_path, lines):
    limits = tmp_path / "limits.toml"
    changes = {"controls": ["server"], "privacy": {"unit": "example", "epsilon": 4.0, "batch_size": 16}}
    experiment = tiny_experiment(tmp_path, {**changes, "runtime.logs": "json", "privacy.limits": str(limits)})
    merchant = sorted(load(experiment.data).merchants)[0]
    limits.write_text(f'[merchants."{merchant}"]\nmax_epsilon = 0.001\n', encoding="utf-8")
    run(experiment)
    told = [line for line in lines() if line.get("merchant") == merchant and line["round"] == 1]
    assert [line["logger"] for line in told] == [
        "fed_distill.merchant.site",
        "fed_distill.coordinator.uplink_validator",
    ]
    assert all(line["federation"] == "fedavg-kd" and line["level"] == "WARNING" for line in told)
    assert told[0]["site"] == "0" and "above the limit of 0.001" in told[0]["message"]


@pytest.fixture
def escaping():
    """What a site's process logs, which shows by its escape what others could hide something with."""
    before = logging.getLogRecordFactory()
    escape_logs()
    yield
    logging.setLogRecordFactory(before)


EVIL = "x\x1b[2J\r\n2026-01-01 INFO nothing happened\u202e\x9b"


def test_what_comes_from_outside_looks_like_no_other_line_and_moves_no_terminal(escaping, caplog):
    logging.getLogger("flwr").warning("[RUN %s, ROUND %s]", 7, EVIL)
    try:
        raise TrainingError(EVIL)
    except TrainingError as error:
        logging.getLogger("clients").error("a message failed", exc_info=error)
    for text in (caplog.text, caplog.messages[0]):
        assert all(sign.isprintable() or sign == "\n" for sign in text)
        assert r"x\x1b[2J\r" in text and r"nothing happened\u202e\x9b" in text
    assert not any(line.startswith("2026") for line in caplog.text.splitlines())


def test_what_is_harmless_is_logged_as_it_is(escaping, caplog):
    logging.getLogger("clients").warning("%d merchants of %s: %.1f %%", 3, "Müller & Söhne 店", 4.5)
    assert caplog.messages == ["3 merchants of Müller & Söhne 店: 4.5 %"]
