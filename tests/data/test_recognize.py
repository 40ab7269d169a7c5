"""What a table holds is recognized by names in several languages and by content, and doubts are said."""

import csv
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from fed_distill.data.column_words import fits, parts_of
from fed_distill.data.label_meaning import grades, sentiments, sides
from fed_distill.data.recognize import Recognized, recognize
from fed_distill.errors import ConfigError, DataError


def write(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def pairs(header: Sequence[str], labels: Sequence[object], path: Path, shops: int = 6) -> Path:
    """Queries of three words, and titles that have as many of them as their label is good, best label first."""
    rows: list[Sequence[object]] = []
    for number in range(120):
        words = [f"alpha{number}", f"beta{number}", f"gamma{number}"]
        for place, label in enumerate(labels):
            shared = words[: max(0, 3 - place)]
            title = " ".join([*shared, *(f"other{number}{place}{at}" for at in range(4 - len(shared)))])
            rows.append([" ".join(words), title, label, f"shop {number % shops}"])
    return write(path, header, rows)


@pytest.mark.parametrize(
    ("header", "labels", "classes"),
    [
        (["query", "product_title", "esci_label", "seller"], ["E", "S", "C", "I"], "esci"),
        (["Suchbegriff", "Artikelname", "Relevanz", "Händler"], ["genau", "Ersatz", "Zubehör", "irrelevant"], "esci"),
        (["requête", "titre", "pertinence", "vendeur"], ["exact", "partiel", "non pertinent"], "esi"),
        (["búsqueda", "producto", "relevancia", "tienda"], ["relevante", "no relevante"], "ei"),
        (["запрос", "товар", "релевантность", "магазин"], ["точный", "замена", "нерелевантный"], "esi"),
        (["查询", "商品", "标签", "店铺"], ["相关", "不相关"], "ei"),
        (["query", "title", "grade", "shop"], [3, 2, 1, 0], "esci"),
        (["query", "title", "rank", "shop"], [1, 2, 3], "esi"),
        (["query", "title", "score", "shop"], ["1.0", "0.5", "0.0"], "esi"),
        (["zapytanie", "nazwa", "ocena", "sklep"], ["tak", "nie"], "ei"),
    ],
)  # fmt: skip
def test_pairs_with_columns_and_labels_in_any_language(
    header: list[str], labels: list[object], classes: str, tmp_path: Path
) -> None:
    label = {"label": header[2]} if header[2] == "rank" else {}
    found = recognize(pairs(header, labels, tmp_path / "pairs.csv"), label)
    assert found.task == "relevance"
    assert found.columns == dict(zip(("text", "pair", "label", "merchant"), header, strict=True))
    assert "".join(found.labels[str(one)][0] for one in labels) == classes
    assert found.sizes == {f"shop {at}": 20 * len(labels) for at in range(6)}


def test_labels_of_several_words_are_named_by_those_that_are_known() -> None:
    labels = {
        "passt genau": "exact",
        "Alternative": "substitute",
        "als Zubehör": "complement",
        "unpassend": "irrelevant",
    }
    found = grades(dict.fromkeys(labels, 5), {})
    assert found is not None and found.sure and found.labels == labels
    negated = grades({"relevant": 5, "gar nicht relevant": 5}, {"relevant": 0.9, "gar nicht relevant": 0.1})
    assert negated is not None and negated.labels["gar nicht relevant"] == "irrelevant"


def test_labels_in_unknown_words_are_ordered_by_shared_words_and_doubted(tmp_path: Path) -> None:
    found = recognize(pairs(["query", "title", "label", "shop"], ["zig", "zag", "zug"], tmp_path / "pairs.csv"), {})
    assert found.labels == {"zig": "exact", "zag": "substitute", "zug": "irrelevant"}
    assert any("their words are unknown" in doubt and "--meaning" in doubt for doubt in found.doubts)


def test_what_the_user_names_is_taken(tmp_path: Path) -> None:
    path = pairs(["a", "b", "c", "d"], ["zig", "zag"], tmp_path / "pairs.csv")
    given = {"text": "a", "pair": "b", "label": "c", "merchant": "d"}
    found = recognize(path, given, "relevance", "", ["zig=irrelevant", "zag=exact"])
    assert (found.task, found.columns, found.labels) == ("relevance", given, {"zig": "irrelevant", "zag": "exact"})
    with pytest.raises(ConfigError, match=r"--meaning zog=exact: no row has the label 'zog'; labels: zig, zag"):
        recognize(path, given, "relevance", "", ["zog=exact"])
    with pytest.raises(ConfigError, match=r"--meaning zig=exakt: relevance has no class 'exakt'; it has: exact, subst"):
        recognize(path, given, "relevance", "", ["zig=exakt"])
    with pytest.raises(ConfigError, match=r"--pair x: .* has no such column; it has: a, b, c, d"):
        recognize(path, {**given, "pair": "x"})


def reviews(path: Path, header: Sequence[str] = ("review_id", "reviewText", "rating", "seller", "date")) -> Path:
    rows = [[at, f"a text of {at} about the product", at % 5 + 1, f"shop{at % 4}", "2024-01-01"] for at in range(200)]
    return write(path, header, rows)


def test_ratings_of_reviews_are_a_sentiment_without_their_middle(tmp_path: Path) -> None:
    found = recognize(reviews(tmp_path / "reviews.csv"), {})
    assert (found.task, found.columns["text"], found.columns["label"]) == ("sentiment", "reviewText", "rating")
    assert found.labels == {"1": "negative", "2": "negative", "4": "positive", "5": "positive"}
    assert found.dropped == {"3": 40}
    assert found.columns["merchant"] == "seller"
    assert any("--task category" in doubt for doubt in found.doubts)


def test_questions_and_their_intents_need_no_meaning(tmp_path: Path) -> None:
    rows = [[f"Wann kommt Paket {at}?", ("Versand", "Zahlung")[at % 2]] for at in range(60)]
    found = recognize(write(tmp_path / "faq.csv", ["Frage", "Absicht"], rows), {})
    assert (found.task, found.columns) == ("faq", {"text": "Frage", "label": "Absicht"})
    assert found.labels == found.dropped == found.sizes == {}
    assert any("no column names the merchants" in doubt for doubt in found.doubts)


def test_a_merchant_column_with_one_name_is_told(tmp_path: Path) -> None:
    rows = [[f"query {at % 20}", f"title {at}", ("exact", "irrelevant")[at % 2], "Solo"] for at in range(80)]
    found = recognize(write(tmp_path / "one.csv", ["query", "title", "grade", "seller"], rows), {})
    assert "merchant" not in found.columns
    (doubt,) = (doubt for doubt in found.doubts if "merchant" in doubt)
    assert doubt == "column 'seller' names one merchant only: rows are dealt out to several invented ones"


def test_two_titles_and_a_decision_are_a_match(tmp_path: Path) -> None:
    rows = [[f"left {at}", f"right {at}", at % 2, f"shop {at % 3}"] for at in range(90)]
    found = recognize(write(tmp_path / "match.csv", ["title_1", "title_2", "same", "shop"], rows), {})
    assert (found.task, found.labels) == ("matching", {"0": "different", "1": "same"})
    assert any("the task is matching; otherwise: --task" in doubt for doubt in found.doubts)


def test_labels_that_one_text_cannot_have_belong_to_a_pair(tmp_path: Path) -> None:
    grades = ("uguale", "parziale", "diverso")
    rows = [
        (f"oggetto {one}", f"proposta {one} {two} {grades[two]}", grades[two]) for one in range(40) for two in range(3)
    ]
    path = write(tmp_path / "coppie.csv", ["articolo", "offerta", "esito"], rows)
    found = recognize(path, {})
    assert found.columns == {"text": "articolo", "pair": "offerta", "label": "esito"}
    assert any("as many texts of the first have several labels" in doubt for doubt in found.doubts)
    turned = recognize(
        write(tmp_path / "turned.csv", ["voce A", "voce B", "esito"], [(b, a, c) for a, b, c in rows]), {}
    )
    assert turned.columns == {"text": "voce B", "pair": "voce A", "label": "esito"}
    stars = [(f"ottimo {one} {two}", f"prodotto {one}", str(two + 1)) for one in range(40) for two in range(5)]
    rated = recognize(write(tmp_path / "stelle.csv", ["commento", "prodotto", "stelle"], stars), {})
    assert rated.task == "sentiment" and "pair" not in rated.columns
    single = recognize(path, {}, "category")
    assert "pair" not in single.columns


def test_a_column_that_could_be_the_merchants_is_mentioned(tmp_path: Path) -> None:
    rows = [[f"some title {at}", "ab"[at % 2], f"brand{at % 5}"] for at in range(100)]
    found = recognize(write(tmp_path / "rows.csv", ["title", "category", "brand"], rows), {})
    assert any("could it be brand?" in doubt and "--merchant NAME" in doubt for doubt in found.doubts)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text\n" + "hello\n" * 99, r"has one column, 'text': training requires a text and its label in two columns"),
        ("a,5\n" + "".join(f"text {at},{at % 5 + 1}\n" for at in range(99)), r"seems to have no header: .*'a, 5'"),
        ("text,number\n" + "".join(f"text {at},{at}\n" for at in range(99)), r"no column holds labels.*--label NAME"),
        ("id,label\n" + "".join(f"{at},{at % 2}\n" for at in range(99)), r"no column holds texts.*--text NAME"),
    ],
)
def test_a_table_that_cannot_be_trained_on_names_the_remedy(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        recognize(tmp_path / "rows.csv", {})


def test_labels_that_say_nothing_are_not_guessed(tmp_path: Path) -> None:
    labels = ["ka", "ke", "ki", "ko", "ku"]
    path = pairs(["query", "title", "label", "shop"], labels, tmp_path / "pairs.csv")
    with pytest.raises(DataError, match=r"labels of column 'label' .*'ka'.* --meaning LABEL=CLASS"):
        recognize(path, {})


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("ProductTitle", ("product", "title")),
        ("search_term", ("search", "term")),
        ("Größe-2", ("grosse",)),
        ("查询", ("查询",)),
    ],
)
def test_names_are_split_into_words_without_accents(name: str, parts: tuple[str, ...]) -> None:
    assert parts_of(name) == parts


def test_a_history_and_a_candidate_are_a_recommendation(tmp_path: Path) -> None:
    rows = [[f"seen {at} ; seen {at + 1}", f"offer {at} of a shop", at % 2, f"s{at % 5}"] for at in range(90)]
    found = recognize(write(tmp_path / "rows.csv", ["history", "candidate", "clicked", "store"], rows), {})
    assert (found.task, found.columns["pair"]) == ("recommend", "candidate")
    assert found.labels == {"0": "not_recommend", "1": "recommend"}


def test_a_compound_fits_less_than_the_whole_name() -> None:
    assert [fits(name, "title") for name in ("Titel", "Produkttitel", "price")] == [2, 1, 0]
    assert fits("merchant_id", "merchant") == 1


def test_numbers_are_graded_by_equal_distances_on_their_scale() -> None:
    """Five grades on four classes: 0, 1/4, 1/2, 3/4 and 1 times three, rounded half up."""
    counts = Counter({str(at): 10 for at in range(5)})
    found = grades(counts, {str(at): at / 4 for at in range(5)})
    assert found is not None and not found.sure
    assert [found.labels[str(at)] for at in range(5)] == [
        "irrelevant", "complement", "substitute", "substitute", "exact",
    ]  # fmt: skip


def test_a_measurement_is_no_scale() -> None:
    counts = Counter({f"{at / 7:.3f}": 1 for at in range(50)})
    assert grades(counts, {}) is None
    assert sentiments(counts) is None


def test_words_for_yes_and_no() -> None:
    found = sides({"Ja": 3, "Nein": 4}, "different", "same")
    assert found is not None and found.labels == {"Ja": "same", "Nein": "different"}
    assert sides({"a": 1, "b": 2}, "different", "same") is None
    assert sides({"0": 1, "1": 2, "2": 2}, "different", "same") is None


def test_a_neutral_word_between_positive_and_negative_is_dropped() -> None:
    found = sentiments({"positive": 3, "neutral": 3, "negative": 3})
    assert found is not None and found.labels == {"positive": "positive", "negative": "negative"}


def test_a_shuffled_table_is_recognized_alike(tmp_path: Path) -> None:
    """The order of rows and columns carries no meaning."""
    source = pairs(["query", "title", "grade", "shop"], [2, 1, 0], tmp_path / "pairs.csv")
    header, *rows = list(csv.reader(source.open(encoding="utf-8")))
    order = [3, 0, 2, 1]
    random.Random(0).shuffle(rows)
    turned = write(tmp_path / "turned.csv", [header[at] for at in order], [[row[at] for at in order] for row in rows])

    def known(found: Recognized) -> tuple[object, ...]:
        return found.task, dict(found.columns), dict(found.labels), dict(found.sizes)

    assert known(recognize(turned, {})) == known(recognize(source, {}))


def test_a_table_with_far_too_many_columns_is_refused_at_once(tmp_path: Path) -> None:
    wide = write(tmp_path / "wide.csv", [f"c{at}" for at in range(501)], [["x"] * 501] * 80)
    with pytest.raises(DataError, match="has 501 columns: keep at most 500"):
        recognize(wide, {})


@pytest.mark.parametrize(
    "labels",
    [
        ("tam eşleşme", "ikame", "tamamlayıcı", "ilgisiz"),
        ("exact", "alternatief", "accessoire", "niet relevant"),
    ],
)
def test_grades_in_turkish_and_dutch_are_known_by_their_names(tmp_path: Path, labels: tuple[str, ...]) -> None:
    rows = [(f"q {one}", f"title {one} {two}", labels[two]) for one in range(30) for two in range(4)]
    found = recognize(write(tmp_path / "pairs.csv", ["query", "title", "grade"], rows), {})
    assert found.labels == dict(zip(labels, ("exact", "substitute", "complement", "irrelevant"), strict=True))
    assert not any("words are unknown" in doubt for doubt in found.doubts)


def test_a_class_that_is_named_leaves_the_others_as_they_were_recognized(tmp_path: Path) -> None:
    rows = [(f"q {one}", f"title {one} {two}", f"l{two}") for one in range(30) for two in range(4)]
    path = write(tmp_path / "pairs.csv", ["query", "title", "grade"], rows)
    guessed = recognize(path, {}).labels
    named = recognize(path, {}, meanings=["l2=exact"]).labels
    assert named == {**guessed, "l2": "exact"} and len(named) == 4


def test_of_many_labels_those_are_named_that_are_no_words_for_grades(tmp_path: Path) -> None:
    labels = ("Exact", "Substitute", "complement", "irrelevant", "n/a", "???")
    rows = [(f"q {one}", f"title {one} {two}", label) for one in range(30) for two, label in enumerate(labels)]
    path = write(tmp_path / "pairs.csv", ["query", "title", "grade"], rows)
    with pytest.raises(
        DataError, match=r"labels of column 'grade' \('n/a', '\?\?\?'\) do not say .* without a class are dropped"
    ):
        recognize(path, {})
    found = recognize(path, {}, meanings=["Exact=exact"])
    assert found.dropped == {"n/a": 30, "???": 30}


def test_a_label_that_is_called_as_a_class_is_kept_beside_those_that_are_named(tmp_path: Path) -> None:
    """As the dataset reads it: only labels of no class are dropped."""
    labels = ("Top", "Substitute", "irrelevant", "n/a", "???", "-")
    rows = [(f"q {one}", f"title {one} {two}", label) for one in range(30) for two, label in enumerate(labels)]
    path = write(tmp_path / "pairs.csv", ["query", "title", "grade"], rows)
    found = recognize(path, {}, "relevance", meanings=["Top=exact"])
    assert found.dropped == {"n/a": 30, "???": 30, "-": 30}


def test_one_to_five_are_stars_whatever_the_column_is_called(tmp_path: Path) -> None:
    rows = [(f"tekst {one} over een ding", str(one % 5 + 1), f"winkel {one % 6}") for one in range(200)]
    found = recognize(write(tmp_path / "sterren.csv", ["tekst", "sterretjes", "winkel"], rows), {})
    assert found.task == "sentiment"
    assert any("--task category" in doubt for doubt in found.doubts)


def test_a_star_that_is_named_leaves_the_other_ratings(tmp_path: Path) -> None:
    rows = [(f"tekst {one} over een ding", str(one % 5 + 1)) for one in range(200)]
    found = recognize(write(tmp_path / "sterren.csv", ["review", "stars"], rows), {}, meanings=["3=positive"])
    assert found.labels == {"1": "negative", "2": "negative", "3": "positive", "4": "positive", "5": "positive"}


def test_labels_that_nothing_tells_are_dropped_if_others_are_named(tmp_path: Path) -> None:
    rows = [(f"q {one}", f"title {one} {two}", f"l{two}") for one in range(30) for two in range(6)]
    path = write(tmp_path / "pairs.csv", ["query", "title", "grade"], rows)
    found = recognize(path, {}, "relevance", meanings=["l0=exact", "l1=irrelevant"])
    assert found.labels == {"l0": "exact", "l1": "irrelevant"} and set(found.dropped) == {"l2", "l3", "l4", "l5"}
