"""A site reads its own table by its own mapping, and nothing else; its own rules win and are named."""

from datetime import time
from types import SimpleNamespace

import numpy as np
import pytest

from fed_distill.data import load
from fed_distill.data.public_part import PublicPart
from fed_distill.errors import ConfigError, DataError, NotAllowed
from fed_distill.experiment.grid import context_of
from fed_distill.merchant.app import site_for
from fed_distill.merchant.limits import Limits, Rules
from fed_distill.merchant.manifest import Manifest
from fed_distill.seeds import derive

HEADER = "anfrage,produkt,note,laden"


@pytest.fixture
def manifest_of(deployment):
    """A function (rows of a CSV, changes to its text) -> the manifest of site north with that table of its own."""

    def make(rows, **columns):
        folder = deployment / "sites" / "north"
        (folder / "own.csv").write_text("\n".join([HEADER, *rows]) + "\n", encoding="utf-8")
        named = {"text": "anfrage", "pair": "produkt", "label": "note", "merchant": "laden", **columns}
        manifest = Manifest.read(folder / "site.toml")
        data = manifest.data.model_copy(update={"path": "own.csv", "columns": named, "part": ""})
        return manifest.model_copy(update={"data": data, "folder": folder})

    return make


def rows(count, merchant="acme"):
    grades = ("exact", "substitute", "complement", "irrelevant")
    return [f"query {number},product {number},{grades[number % 4]},{merchant}" for number in range(count)]


def test_dealt_data_are_those_of_the_simulation(deployment, experiment):
    data, seen = load(experiment.data), []
    for site in deployment.glob("sites/*"):
        own = Manifest.read(site / "site.toml").read_data()
        assert (own.task, own.proxy.texts, own.proxy.pairs) == (data.task, data.proxy.texts, data.proxy.pairs)
        assert not len(own.public) and not len(own.test)
        seen += own.merchants
        for name, merchant in own.merchants.items():
            for part in ("train", "valid", "test"):
                mine, theirs = getattr(merchant, part), getattr(data.merchants[name], part)
                assert (mine.texts, mine.pairs, mine.merchants) == (theirs.texts, theirs.pairs, theirs.merchants)
                assert np.array_equal(mine.labels, theirs.labels)
    assert sorted(seen) == sorted(data.merchants)


def test_own_columns_are_mapped_and_groups_held_out(manifest_of):
    data = manifest_of([*rows(40), *rows(20, "globex")]).read_data()
    assert sorted(data.merchants) == ["acme", "globex"]
    acme = data.merchants["acme"]
    assert len(acme.train) + len(acme.valid) + len(acme.test) == 40
    held_out = {*acme.test.texts, *acme.valid.texts}
    assert held_out and not held_out & {*acme.train.texts, *data.merchants["globex"].train.texts}
    row = int(acme.train.texts[0].split()[1])
    assert (acme.train.pairs[0], acme.train.labels[0]) == (f"product {row}", row % 4)


def test_who_is_held_out_is_the_sites_choice_and_not_the_servers(manifest_of, experiment):
    """A server that chose could have each row held out once, and learn exactly who of them is right."""
    own = manifest_of(rows(60))

    def held_out(manifest):
        return manifest.read_data().merchants["acme"].test.texts

    others = own.model_copy(update={"data": own.data.model_copy(update={"seed": 7})})
    assert held_out(own) == held_out(own) != held_out(others)


def test_a_row_more_moves_no_other_one(manifest_of):
    """Else one example decides which others are trained on, which no noise for one example hides."""
    before, after = (manifest_of(some).read_data().merchants["acme"] for some in (rows(60), rows(61)))
    for part in ("train", "valid", "test"):
        had, has = ({*getattr(data, part).texts} for data in (before, after))
        assert len(had) > 2 and had <= has
    assert len(after.train) + len(after.valid) + len(after.test) == 61


def test_who_has_nothing_to_train_on_is_left_out_unless_named(manifest_of, caplog):
    alone = next(name for name in map("shop {}".format, range(50)) if not is_trained_on(manifest_of, name))
    manifest = manifest_of([*rows(40), f"query {alone},product,exact,{alone}"])
    assert list(manifest.read_data().merchants) == ["acme"]
    assert f"has no training examples of 1 merchants, which are excluded: {[alone]}" in caplog.text
    named = manifest.model_copy(update={"data": manifest.data.model_copy(update={"merchants": ("acme", alone)})})
    with pytest.raises(DataError, match=f"no training examples of merchant '{alone}'"):
        named.read_data()


def is_trained_on(manifest_of, name):
    """Whether the only row of a merchant, whose query has its name, is one to train on."""
    config = manifest_of(rows(1)).data
    at = derive(config.seed, "part", f"query {name}") / 2**63
    return at >= config.valid_share + config.test_share


def test_rows_of_one_group_stay_together_and_rows_without_one_are_by_themselves(manifest_of):
    own = [f"query {number},product {number},exact,acme,{number // 4 if number < 40 else ''}" for number in range(80)]
    manifest = manifest_of([row.rpartition(",")[0] for row in own], group="gruppe")
    path = manifest.folder / "own.csv"
    path.write_text("\n".join([f"{HEADER},gruppe", *own]) + "\n", encoding="utf-8")
    acme = manifest.read_data().merchants["acme"]
    numbers = [{int(text.split()[1]) for text in part.texts} for part in (acme.train, acme.valid, acme.test)]
    assert sum(map(len, numbers)) == 80 and all(numbers)
    for first in range(0, 40, 4):
        assert any({*range(first, first + 4)} <= part for part in numbers)
    assert all({*range(40, 80)} & part for part in numbers)


def test_without_a_merchant_column_all_rows_are_the_sites(manifest_of):
    assert list(manifest_of(rows(20), merchant="").read_data().merchants) == ["north"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"columns": {"text": "query", "pair": "produkt", "label": "note"}}, r"own\.csv has no column 'query'"),
        ({"columns": {"titel": "anfrage"}}, "columns has no 'titel'"),
        ({"columns": {"text": "anfrage", "label": "note"}}, r"data\.columns\.pair"),
        ({"merchants": ("hooli",)}, "no rows of merchant 'hooli'"),
        ({"path": "gone.csv"}, r"gone\.csv is not a file: put the site's table there"),
        ({"part": "laden"}, "row 1: part 'acme' must be one of train, valid, test"),
    ],
)
def test_a_wrong_mapping_is_named(manifest_of, change, message):
    manifest = manifest_of(rows(20))
    wrong = manifest.model_copy(update={"data": manifest.data.model_copy(update=change)})
    with pytest.raises((ConfigError, DataError), match=message):
        wrong.read_data()


def test_an_unknown_key_of_the_file_is_named(deployment):
    path = deployment / "sites" / "north" / "site.toml"
    path.write_text(path.read_text(encoding="utf-8").replace("max_rounds", "max_round"), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"unknown key limits\.rules\.max_round"):
        Manifest.read(path)


def test_a_site_takes_no_path_from_the_server(deployment, experiment, tmp_path):
    stolen = experiment.with_changes(
        {"privacy.ledger": str(tmp_path / "theirs"), "privacy.limits": "/nowhere.toml", "data.dataset": "nothing"}
    )
    context = context_of(2, 1, stolen.to_run_config())
    folder = deployment / "sites" / "north"
    context.node_config["site"] = str(folder / "site.toml")
    site = site_for(context)
    assert site.experiment.privacy.ledger == folder / "state" / "ledgers"
    assert site.experiment.runtime.folder == folder / "state" / "runs"
    assert site.experiment.runtime.trainer == "cohort"
    insisting = Manifest.read(folder / "site.toml").model_copy(update={"trainer": "sequential"})
    assert insisting.own(stolen).runtime.trainer == "sequential"
    assert insisting.own(stolen.with_changes({"runtime.device": "cuda"})).runtime.device == "auto"
    assert site.protection.limits == Manifest.read(folder / "site.toml").limits


def test_the_fingerprint_tells_another_proxy_set_or_order_of_classes(task, make_examples, tmp_path):
    public = PublicPart(task, make_examples(5).unlabeled())
    public.write(tmp_path / "proxy.json")
    assert PublicPart.read(tmp_path / "proxy.json").fingerprint == public.fingerprint
    other = SimpleNamespace(**vars(task) | {"classes": task.classes[::-1]})
    assert PublicPart(other, public.proxy).fingerprint != public.fingerprint
    assert PublicPart(task, make_examples(5, seed=1).unlabeled()).fingerprint != public.fingerprint


@pytest.mark.parametrize("content", ["{}", "[", '{"task": 1, "texts": [], "pairs": null}'])
def test_a_file_that_is_no_proxy_set_is_named(tmp_path, content):
    (tmp_path / "proxy.json").write_text(content)
    with pytest.raises(DataError, match=r"proxy\.json is not a valid proxy set"):
        PublicPart.read(tmp_path / "proxy.json")


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (Rules(methods=("fedmd",)), "rule methods: fedmd, not 'fedavg-kd'"),
        (Rules(max_rounds=2), "rule max_rounds: at most 2 in a federation, not 3"),
        (Rules(hours="22:00-06:00"), "rule hours: 22:00-06:00, and the site's time is 12:00"),
        (Rules(hours="13:00-14:00"), "rule hours"),
    ],
)
def test_a_rule_that_forbids_is_named(rules, message):
    with pytest.raises(NotAllowed, match=message):
        rules.check("fedavg-kd", 3, time(12))


def test_what_the_rules_allow_passes():
    Rules().check("my_shop:Own", 10**6, time(12))
    rules = Rules(methods=("fedmd",), max_rounds=3, max_update_mib=1.0, hours="22:00-06:00")
    for now in (time(22), time(23, 59), time(0), time(5, 59)):
        rules.check("fedmd", 3, now)
    for now in (time(6), time(21, 59)):
        with pytest.raises(NotAllowed, match="rule hours"):
            rules.check("fedmd", 3, now)
    rules.check_size(2**20)
    with pytest.raises(NotAllowed, match=r"rule max_update_mib: at most 1 MiB, not 1\.5 MiB"):
        rules.check_size(3 * 2**19)


@pytest.mark.parametrize("hours", ["noon", "25:00-26:00", "06:00-06:00", "1-2-3"])
def test_hours_that_are_none_are_named(tmp_path, hours):
    path = tmp_path / "limits.toml"
    path.write_text(f'[rules]\nhours = "{hours}"\n', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"rules\.hours"):
        Limits.read(path)


def test_a_site_loads_no_words_and_no_model_that_the_server_named(deployment, experiment):
    """Paths of the site's own machine, which a server could otherwise have read."""
    named = {"synonyms": 0.2, "dictionary": "words.txt", "translated": 0.5, "back_translation": ["there", "back"]}
    asked = experiment.with_changes({"training.augmentation": named})
    own = Manifest.read(deployment / "sites" / "north" / "site.toml").own(asked).training.augmentation
    assert (own.synonyms, own.dictionary, own.translated, own.back_translation) == (0.2, None, 0.0, ())


def test_no_merchant_of_a_real_site_is_byzantine_whatever_the_server_asks(deployment, experiment):
    context = context_of(2, 1, experiment.with_changes({"byzantine.fraction": 0.3}).to_run_config())
    context.node_config = {"site": str(deployment / "sites" / "north" / "site.toml")}
    with pytest.raises(ConfigError, match="real sites reject it"):
        site_for(context)
