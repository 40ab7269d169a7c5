"""A privacy unit of one's own is one file, named by import path: it protects, is paid for, and is reported.

One is that of the documentation, whose noise merchants add; of the other the server does.
"""

import json
import re
import sys
from pathlib import Path

import pytest

from fed_distill import run
from fed_distill.config import Experiment
from fed_distill.data import load
from fed_distill.errors import BudgetExceeded, ConfigError, NotAllowed
from fed_distill.mechanisms.lookup import mechanism, mechanism_of, recalled
from fed_distill.merchant.limits import Limit, Limits
from fed_distill.payloads.soft_labels import SoftLabels
from fed_distill.payloads.student_update import StudentUpdate
from fed_distill.privacy.ledger import Ledgers
from fed_distill.registry import allow_imports
from tests.privacy.recomputed import assert_charged_rightly

QUIET = {"controls": [], "adaptation.enabled": False, "data.max_merchants": 3, "federation.rounds": 2}

GUIDE = Path(__file__).parents[2] / "docs" / "how-to" / "extending.md"
(BY_LABEL,) = re.findall(r"```python\n((?:(?!```).)*class ByLabel.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
WITHOUT_SAMPLING = '''
from dataclasses import dataclass, field
from typing import ClassVar

from fed_distill.config import UpdatesConfig
from fed_distill.mechanisms.at_server import AtServer
from fed_distill.mechanisms.base import Words
from fed_distill.mechanisms.merchant import PrivateMean
from fed_distill.payloads.student_update import StudentUpdate
from fed_distill.privacy.accounting import Spend, noise_for


@dataclass(frozen=True)
class Own(AtServer):
    """Hides a merchant in the noised mean of all of them, whose sampling is not counted on."""

    settings: UpdatesConfig = field(default_factory=UpdatesConfig)
    moved_by: ClassVar[float] = 2.0
    compares: ClassVar[bool] = False

    @property
    def words(self):
        return Words("all examples of any one merchant", "the server", "A merchant", "It is hidden.", "merchants", "")

    def covers(self, kind):
        return "received by the server, which releases their noised mean" if kind is StudentUpdate else None

    def noise(self, terms):
        config = terms.privacy
        delta = self.delta(config, terms.merchants)
        return noise_for(config.epsilon, delta, 1.0, terms.federation.rounds, accountant=config.accountant)

    def spends(self, terms):
        return (Spend(self.noise(terms), 1.0, terms.federation.rounds),)

    def aggregator(self, terms, student, noise):
        return PrivateMean(
            self.noise(terms), terms.merchants, self.settings.max_update_norm, noise.name, exact=not noise.reproducible
        )
'''
UNITS = {"by_label": BY_LABEL, "without_sampling": WITHOUT_SAMPLING}


@pytest.fixture
def unit_of(tmp_path, monkeypatch):
    """A function (name of a module, its text) -> the import path of its unit, in the working folder."""
    monkeypatch.chdir(tmp_path)

    def written(module, text):
        monkeypatch.delitem(sys.modules, module, raising=False)
        (tmp_path / f"{module}.py").write_text(text, encoding="utf-8")
        return f"{module}:{'ByLabel' if 'ByLabel' in text else 'Own'}"

    return written


@pytest.mark.parametrize("module", UNITS)
def test_one_file_is_enough(unit_of, tiny_experiment, tmp_path, module):
    unit = unit_of(module, UNITS[module])
    experiment = tiny_experiment(tmp_path, {**QUIET, "privacy.unit": unit, "privacy.epsilon": 8.0})
    result = run(experiment)
    own, told = mechanism(unit), result.summary["privacy"]
    assert (told["unit"], told["protects"], told["trusted"]) == (unit, own.words.hides, own.words.trusted)
    assert 7.5 < told["epsilon"] <= 8.0 and told["merchants"] == 3
    ledgers = Ledgers(result.folder / "checkpoint" / "ledgers" / "seed-0" / experiment.federation.title)
    assert ledgers.merchants() == sorted(load(experiment.data).merchants)
    for merchant in ledgers.merchants():
        ledger = ledgers.of(merchant)
        assert {json.loads(line)["moved_by"] for line in ledger.path.read_text(encoding="utf-8").splitlines()} == {2.0}
        assert_charged_rightly(ledger.epsilon(unit), ledger.path, unit)
    page = (result.folder / "report.html").read_text(encoding="utf-8")
    assert own.words.hides in page and own.covers(StudentUpdate) in page


@pytest.mark.parametrize(
    ("module", "options"),
    [("by_label", {"max_grad_norm": 0.5, "size_noise": 7}), ("without_sampling", {"max_update_norm": 2})],
)
def test_its_settings_are_its_options(unit_of, module, options):
    unit = unit_of(module, UNITS[module])
    privacy = {"unit": unit, "epsilon": 8.0, "options": options}
    own = mechanism_of(Experiment.parse({"privacy": privacy}))
    assert own.settings.model_dump(include=set(options)) == options
    default = mechanism_of(Experiment.parse({"privacy": {**privacy, "options": {}}}))
    assert default.settings == type(own.settings)()


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        ("by_label", {"max_update_norm": 1.0}, r"unknown key privacy\.options\.max_update_norm"),
        ("by_label", {"max_grad_norm": 0.0}, r"privacy\.options\.max_grad_norm must be at least"),
        ("without_sampling", {"max_grad_norm": 1.0}, r"unknown key privacy\.options\.max_grad_norm"),
    ],
)
def test_an_option_that_it_has_not_is_refused(unit_of, module, options, message):
    unit = unit_of(module, UNITS[module])
    experiment = Experiment.parse({"privacy": {"unit": unit, "epsilon": 8.0, "options": options}})
    with pytest.raises(ConfigError, match=message):
        mechanism_of(experiment)


def test_whoever_reads_a_report_imports_no_code_that_it_names(unit_of, monkeypatch):
    unit = unit_of("by_label", BY_LABEL)
    own = mechanism(unit)
    assert recalled(unit) == own
    monkeypatch.delitem(sys.modules, "by_label")
    assert recalled(unit) is None and "by_label" not in sys.modules
    assert recalled("none") is None and recalled("person") is None


def test_an_example_pays_for_what_hides_its_label_twice_what_it_pays_for_an_example(unit_of):
    own = mechanism(unit_of("by_label", BY_LABEL))
    assert own.stated_move == 2.0
    assert {mechanism(built_in).stated_move for built_in in ("example", "group", "merchant", "vote")} == {None}
    assert {unit: mechanism(unit).moved_by for unit in ("example", "group", "merchant", "vote")} == {
        "example": 1.0,
        "group": 2.0,
        "merchant": 2.0,
        "vote": 1.0,
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            BY_LABEL.replace("moved_by: ClassVar[float] = 2.0", ""),
            "must state how far one example changes the noised value",
        ),
        (BY_LABEL.replace("= 2.0", "= 0.5"), "set moved_by to at least 1"),
        (BY_LABEL.replace("def words", "def some_words"), "lacks words"),
        (WITHOUT_SAMPLING.replace("def spends", "def prices"), "lacks spends"),
        ("Own = 3", "must be a subclass of AtMerchants or AtServer"),
        ("from fed_distill.mechanisms.none import Unprotected as Own", "must be a subclass of AtMerchants or AtServer"),
    ],
)
def test_one_that_could_protect_less_than_it_says_is_refused_before_anything_runs(
    unit_of, tiny_experiment, tmp_path, text, message
):
    changes = {**QUIET, "privacy.unit": unit_of("wrong", text), "privacy.epsilon": 8.0}
    with pytest.raises(ConfigError, match=message):
        run(tiny_experiment(tmp_path, changes))
    assert not (tmp_path / "tiny").exists()


@pytest.mark.parametrize(
    ("unit", "message"),
    [
        ("exmaple", "unknown privacy unit 'exmaple'; did you mean example"),
        ("fed_distill.mechanisms.none:Unprotected", "is built in"),
        ("fed_distill.mechanisms.example:ByExample", "is built in"),
        ("no_such_module:Own", "cannot import privacy unit"),
    ],
)
def test_a_name_that_is_none_is_refused(tiny_experiment, tmp_path, unit, message):
    with pytest.raises(ConfigError, match=message):
        run(tiny_experiment(tmp_path, {**QUIET, "privacy.unit": unit, "privacy.epsilon": 8.0}))


def test_a_method_whose_parts_it_does_not_noise_is_refused(unit_of):
    unit = unit_of("without_sampling", WITHOUT_SAMPLING)
    experiment = Experiment.parse({"privacy": {"unit": unit, "epsilon": 1.0}})
    mechanism(unit).check(experiment, experiment.federation, (StudentUpdate,))
    with pytest.raises(ConfigError, match=r"adds no noise to its student.* method fedavg-kd"):
        mechanism(unit).check(experiment, experiment.federation, (StudentUpdate, SoftLabels))


def test_a_site_takes_part_only_where_its_own_file_names_the_unit_and_its_code(unit_of, tmp_path):
    unit = unit_of("by_label", BY_LABEL)
    with pytest.raises(BudgetExceeded, match="allow units example, group, not 'by_label:ByLabel'"):
        Limit().check_unit("a", unit)
    (tmp_path / "site.toml").write_text(f'[default]\nunits = ["{unit}"]\n', encoding="utf-8")
    Limits.read(tmp_path / "site.toml").of("a").check_unit("a", unit)
    try:
        allow_imports(())
        with pytest.raises(NotAllowed, match="rule imports: privacy unit 'by_label:ByLabel'"):
            mechanism(unit)
        assert mechanism("group").name == "group"
        allow_imports([unit])
        sys.path.append(str(tmp_path))
        assert mechanism(unit).name == unit
    finally:
        allow_imports(None)
        sys.path.remove(str(tmp_path))
