"""``fed-distill init`` writes an experiment that runs as it is, says what it was unsure of, and replaces nothing."""

import csv
import gzip
import random
import tomllib

import pytest

from fed_distill.config import Experiment
from fed_distill.data import load

GRADES = ("passt genau", "Alternative", "Zubehör", "unpassend")


def german_pairs(path, merchants=True):
    """Pairs in German, separated by semicolons, in the encoding of an older spreadsheet."""
    draw = random.Random(0)
    rows = []
    for shop in range(6):
        for number in range(12):
            noun, other = draw.sample(["Kühlschrank", "Waschmaschine", "Mikrowelle", "Staubsauger"], 2)
            query = f"{noun} weiß {number}"
            titles = (f"Bosch {noun} weiß {number}", f"AEG {noun} grün {shop}", f"Filter für {noun}", f"Sharp {other}")
            for title, grade in zip(titles, GRADES, strict=True):
                rows.append([query, f"{title} Nr {shop}{number}", grade, *([f"Händler {shop}"] if merchants else [])])
    header = ["Suchanfrage", "Artikelbezeichnung", "Stufe", *(["Händler"] if merchants else [])]
    with path.open("w", encoding="cp1252", newline="") as file:
        csv.writer(file, delimiter=";").writerows([header, *rows])


def reviews(path):
    draw = random.Random(0)
    words = {1: "terrible broken", 2: "poor weak", 3: "fine plain", 4: "good sturdy", 5: "great perfect"}
    with gzip.open(path, "wt", encoding="utf-8", newline="") as file:
        out = csv.writer(file)
        out.writerow(["id", "text", "stars", "shop"])
        for number in range(400):
            stars = draw.randint(1, 5)
            out.writerow([number, f"{words[stars]} thing, bought as number {number}", stars, f"shop {number % 6}"])


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


RUN = [
    "--set", "federation.rounds=1", "--set", "teacher.steps=2", "--set", "controls=['server']",
    "--set", "runtime.callbacks=[]", "--set", "runtime.measure_speed=false",
]  # fmt: skip
"""What makes a run short; the file itself is read, split and checked as it is by ``init``."""


@pytest.mark.parametrize("merchants", [True, False])
def test_pairs_with_columns_and_labels_in_german_run(entered, here, merchants):
    german_pairs(here / "Paare 2024.csv", merchants)
    code, out, errors = entered("init", "Paare 2024.csv")
    assert code == 0, errors
    assert "not certain: the encoding is taken for windows-1252" in out
    assert "labels" in out and "Zubehör = complement (72)" in out
    assert ("dealt out to invented ones" in out) is not merchants
    text = (here / "Paare-2024.toml").read_text(encoding="utf-8")
    assert "# Not certain:\n# - the encoding is taken for windows-1252" in text
    experiment = Experiment.read("Paare-2024.toml")
    assert (experiment.name, experiment.data.task) == ("Paare-2024", "relevance")
    assert experiment.data.options["labels"] == dict(
        zip(GRADES, ("exact", "substitute", "complement", "irrelevant"), strict=True)
    )
    assert experiment.data.partition == ("merchant" if merchants else "dirichlet")
    code, out, errors = entered("run", "Paare-2024.toml", *RUN, "--set", f"runtime.cache={here / 'cache'}")
    assert code == 0, errors
    assert (here / "runs" / "Paare-2024" / "report.html").is_file()


def test_reviews_run_and_the_labels_that_are_dropped_are_named_with_counts(entered, here, caplog):
    reviews(here / "reviews.csv.gz")
    code, out, errors = entered("init", "reviews.csv.gz")
    assert code == 0, errors
    assert "csv, UTF-8, compressed with gzip, 400 rows" in out
    dropped = next(line for line in out.splitlines() if line.startswith("dropped"))
    with gzip.open(here / "reviews.csv.gz", "rt", encoding="utf-8") as file:
        middle = sum(row["stars"] == "3" for row in csv.DictReader(file))
    assert dropped.split(maxsplit=1)[1] == f"3 ({middle} rows)"
    assert f"# dropped: 3 ({middle} rows)" in (here / "reviews.toml").read_text(encoding="utf-8")
    assert not caplog.records, "it is told once"
    code, _, errors = entered("run", "reviews.toml", *RUN, "--set", f"runtime.cache={here / 'cache'}")
    assert code == 0, errors
    told = [record.getMessage() for record in caplog.records if "dropped" in record.getMessage()]
    assert told == [
        f"dropped {middle} of 400 rows, whose labels are no class: '3' ({middle}); to keep them, map the labels with "
        "data.options.labels"
    ]
    caplog.clear()
    code, out, errors = entered("data", "describe", "reviews.toml")
    assert code == 0
    assert f"3: {middle}" in out
    assert not caplog.records


def test_a_file_that_exists_is_replaced_with_force_only(entered, here):
    reviews(here / "reviews.csv.gz")
    (here / "reviews.toml").write_text("mine = 1", encoding="utf-8")
    code, out, errors = entered("init", "reviews.csv.gz")
    assert (code, out) == (2, "")
    assert "reviews.toml exists: replace it with --force, or name another file with --out" in errors
    assert (here / "reviews.toml").read_text(encoding="utf-8") == "mine = 1"
    assert entered("init", "reviews.csv.gz", "--out", "sub/other.toml")[0] == 0
    assert tomllib.loads((here / "sub" / "other.toml").read_text(encoding="utf-8"))["name"] == "other"
    assert entered("init", "reviews.csv.gz", "--force")[0] == 0
    assert "mine" not in (here / "reviews.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "content", "words", "message"),
    [
        ("one.csv", "text\n" + "hello\n" * 99, [], "one.csv has one column, 'text'"),
        ("few.csv", "text,label\n" + "a b c,x\nd e f,y\n" * 8, ["--text", "text", "--label", "label"], "has 16 rows"),
        ("rows.xlsx", "x", [], "rows.xlsx: unknown format; use a .csv"),
        ("none.csv", None, [], "none.csv does not exist"),
        ("rows.csv", "a,b\n1,2\n", ["--task", "translate"], "--task translate: a table can have relevance"),
    ],
)
def test_an_unfit_table_names_the_remedy_and_nothing_is_written(entered, here, name, content, words, message):
    if content is not None:
        (here / name).write_text(content, encoding="utf-8")
    code, out, errors = entered("init", name, *words)
    assert (code, out) == (2, "")
    assert message in errors
    assert not list(here.glob("*.toml"))


def test_an_unknown_encoding_is_refused(entered, here):
    (here / "table.csv").write_bytes("text,label\ncafé,x\n".encode("latin-1"))
    code, out, errors = entered("init", "table.csv", "--encoding", "klingon")
    assert (code, out) == (2, "")
    assert "encoding 'klingon' is unknown: use a name such as windows-1252 or latin-1" in errors


FORGED = '3\n[privacy]\nunit = "none"\n#\x1b[2J\x01'


@pytest.mark.parametrize("place", ["a dropped label", "a label", "a column", "the file's name", "--out"])
def test_nothing_in_a_table_becomes_a_setting_or_a_command_of_the_terminal(entered, here, place):
    """Line ends end a comment of TOML, and other control characters are not allowed in one."""
    draw = random.Random(0)
    words = ("red", "blue", "shoe", "chair", "lamp", "phone", "case", "green", "oak", "pine", "light", "kitchen")
    table = here / ("a" + FORGED.replace("\n[", "[") + "\n.csv" if place == "the file's name" else "table.csv")
    with table.open("w", encoding="utf-8", newline="") as file:
        out = csv.writer(file)
        out.writerow(["review", "label", f"grade{FORGED}" if place == "a column" else "grade"])
        for number in range(200):
            label = ("positive", "negative")[number % 2]
            if place == "a dropped label" and number % 20 == 0:
                label = FORGED
            if place == "a label":
                label = (FORGED, "other", "third")[number % 3]
            out.writerow([" ".join(draw.sample(words, 5)) + f" {number}", label, "uv"[number % 2]])
    target = f"to{FORGED}.toml".replace("/", "") if place == "--out" else "first.toml"
    code, out, errors = entered("init", str(table.name), "--out", target)
    assert code == 0, errors
    assert "\x1b" not in out and "\n[privacy]" not in out
    settings = tomllib.loads((here / target).read_text(encoding="utf-8"))
    assert "privacy" not in settings
    labels = settings["data"]["options"].get("labels", {})
    assert labels == ({} if place == "a label" else {"positive": "positive", "negative": "negative"})


def sentences(path, words, rows=400):
    """Reviews of few texts, of which each class has half."""
    draw = random.Random(0)
    with path.open("w", encoding="utf-8", newline="") as file:
        out = csv.writer(file)
        out.writerow(["review", "sentiment", "shop"])
        for number in range(rows):
            good = number % 2
            text = f"{words[good]} {number} {draw.choice(words[2:])}"
            out.writerow([text, ("negative", "positive")[good], f"shop {number % 8}"])


ENGLISH = ("this is bad and it broke", "this is good and I like it", "with the blue box", "for my kitchen")
SPANISH = ("esto es malo y no funciona", "esto es bueno y me gusta", "con la caja azul", "para mi cocina")


@pytest.mark.parametrize(("words", "sure"), [(ENGLISH, True), (SPANISH, False)])
def test_minilm_is_doubted_unless_the_texts_are_surely_english(entered, here, words, sure):
    sentences(here / "table.csv", words)
    code, out, errors = entered("init", "table.csv")
    assert code == 0, errors
    text = (here / "table.toml").read_text(encoding="utf-8")
    assert Experiment.read("table.toml").teacher.model == "minilm"
    assert "not certain: minilm" not in out, "a remark on settings is a note"
    advice = "in other languages, set teacher.model to the folder of a multilingual encoder"
    assert (advice in out) is (advice in text) is not sure


def test_a_proxy_set_of_the_servers_own_texts_is_named_and_the_lines_in_the_file_replace_it(entered, here):
    sentences(here / "table.csv", ENGLISH)
    code, out, errors = entered("init", "table.csv")
    assert code == 0, errors
    text = (here / "table.toml").read_text(encoding="utf-8")
    advice = 'set proxy_from = "catalogue" under [data] and public_columns = ["text"] under [data.options]'
    assert advice in out and advice in text
    first = Experiment.read("table.toml")
    assert "local" in first.controls
    data = load(first.data)
    assert first.data.proxy_size == len(data.proxy) < 2000, "a number that can be met"
    told = "It repeats the server's labelled examples"
    assert told in entered("data", "describe", "table.toml")[1]
    lines = [line for line in text.splitlines() if not line.startswith("proxy_size")]
    wanted = ("# proxy_from", "# proxy_size", "# public_columns")
    changed = "\n".join(line.removeprefix("# ") if line.startswith(wanted) else line for line in lines)
    (here / "changed.toml").write_text(changed, encoding="utf-8")
    drawn = load(Experiment.read("changed.toml").data)
    assert len(set(drawn.proxy.texts) & set(drawn.public.texts)) < len(drawn.proxy) / 2
    assert told not in entered("data", "describe", "changed.toml")[1]
