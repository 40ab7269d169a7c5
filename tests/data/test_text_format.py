"""Compression, encoding and delimiter of a table are found, or the message names the remedy."""

import bz2
import gzip
from pathlib import Path

import pytest

from fed_distill.data.table_file import column_names, read_columns
from fed_distill.data.text_format import delimiter_of, encoding_of, format_words, guessed_encoding
from fed_distill.errors import DataError

ROWS = [("Kühlschrank, weiß", "genau; passend"), ("Tür | groß", 'sagt "ja"'), ("zwei\nZeilen", "")]


def table(delimiter: str) -> str:
    """The rows with every field quoted, as RFC 4180 has it."""
    quoted = (delimiter.join('"' + cell.replace('"', '""') + '"' for cell in row) for row in [("text", "label"), *ROWS])
    return "".join(f"{line}\r\n" for line in quoted)


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv.gz"])
def test_every_format_gives_the_same_rows(name: str, encoding: str, delimiter: str, tmp_path: Path) -> None:
    content = table(delimiter).encode(encoding)
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert column_names(path) == ["text", "label"]
    found = read_columns(path, ["label", "text"])
    assert list(zip(found["text"], found["label"], strict=True)) == ROWS


def test_lines_of_json_are_decompressed_too(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress('{"text": "weiß", "label": 3}\n{"text": "b", "label": 4}\n'.encode("utf-16")))
    assert read_columns(path, ["text", "label"]) == {"text": ["weiß", "b"], "label": [3, 4]}


def test_a_named_encoding_is_of_files_that_are_not_in_unicode_only(tmp_path: Path) -> None:
    old, new = tmp_path / "old.csv", tmp_path / "new.csv"
    old.write_bytes("text,label\nweiß,1\n".encode("cp1252"))
    new.write_bytes("text,label\nweiß,1\n".encode())
    for path in (old, new):
        assert read_columns(path, ["text"], encoding="windows-1252") == {"text": ["weiß"]}
    with pytest.raises(DataError, match=r"old.csv, line 2: .*not in UTF-8: .*data.options.encoding = 'windows-1252'"):
        read_columns(old, ["text"])
    with pytest.raises(DataError, match=r"old.csv, line 2: the text is not in ascii: correct the name"):
        read_columns(old, ["text"], encoding="ascii")


def test_a_delimiter_is_the_one_that_separates_the_columns_that_are_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("a,b;label\n1,2;x\n3,4;y\n", encoding="utf-8")
    assert delimiter_of(path, ["a", "b;label"], ",") == ","
    assert delimiter_of(path, ["a,b", "label"], ",") == ";"
    assert read_columns(path, ["a,b", "label"]) == {"a,b": ["1,2", "3,4"], "label": ["x", "y"]}


def test_without_names_it_is_the_one_that_most_rows_have(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    lines = ["text;label", *("one, two, three;1", "four;2", "five, six;3") * 3]
    path.write_text("\n".join(lines), encoding="utf-8")
    assert delimiter_of(path, [], ",") == ";"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(b"text,label\n" + bytes(range(256)) * 99)[:-20], "its compression is damaged"),
        (b"PK\x03\x04rest", "a ZIP archive, as spreadsheets .* are too: unpack it, or export"),
        (bz2.compress(b"text"), "compressed with bzip2: unpack it"),
        (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "is not a text file: it has bytes that no text has"),
    ],
)
def test_a_file_that_is_packed_otherwise_names_the_remedy(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_bytes(content)
    with pytest.raises(DataError, match=f"rows.csv.*{message}"):
        read_columns(tmp_path / "rows.csv", ["text"])


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("windows-1252", "kühlschrank weiß;Größe für Kühlschränke\n"),
        ("windows-1252", "caffettiera retrò con più garanzia;perché è comoda\n"),
        ("windows-1252", "café très bon, où la qualité à bas prix;garçon\n"),
        ("windows-1252", "envío rápido para niños;¿por qué no?\n"),
        ("windows-1250", "świetna kawa, dobra jakość;szybka wysyłka\n"),
        ("windows-1250", "skvělá káva, žádné problémy;rychlé doručení, příjemná obsluha\n"),
        ("windows-1250", "kávéfőző gép;hűtő, gyönyörű fűtőtest\n"),
        ("windows-1251", "холодильник белый;Холодильник Bosch белый\n"),
        ("gb18030", "白色冰箱;海尔冰箱白色双开门\n"),
    ],
)
def test_an_encoding_without_a_mark_is_guessed_by_its_words(encoding: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_bytes((text * 20).encode(encoding))
    assert guessed_encoding(tmp_path / "rows.csv") == encoding


def test_the_format_is_said_in_words(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(gzip.compress("text\nä\n".encode("utf-16")))
    assert format_words(path, encoding_of(path)) == "UTF-16, compressed with gzip"
