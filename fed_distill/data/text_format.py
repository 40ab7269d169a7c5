"""Format of a text file with a table: compression, encoding and delimiter.

The encoding is that of the byte order mark, or UTF-8, or UTF-16 if every second byte is zero, as in texts in Latin
letters. No single-byte encoding is assumed, since all of them decode any file, most of them wrongly: it must be named.
"""

import codecs
import csv
import gzip
import sys
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from fed_distill.errors import DataError

DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "vertical bar"}
"""Delimiters that are recognized, with their names."""
_GZIP = b"\x1f\x8b"
_OTHER_PACKING = {
    b"PK\x03\x04": "a ZIP archive, as spreadsheets (.xlsx) are too: unpack it, or export the spreadsheet as CSV",
    b"BZh": "compressed with bzip2: unpack it, or compress it with gzip",
    b"\xfd7zXZ\x00": "compressed with xz: unpack it, or compress it with gzip",
    b"\x28\xb5\x2f\xfd": "compressed with zstd: unpack it, or compress it with gzip",
}
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark is its beginning
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_GUESSED = {
    "cp1252": "windows-1252",
    "cp1250": "windows-1250",
    "cp1251": "windows-1251",
    "cp1253": "windows-1253",
    "cp1254": "windows-1254",
    "gb18030": "gb18030",
    "big5": "big5",
    "shift_jis": "shift_jis",
    "euc_kr": "euc_kr",
}
"""Encodings that are guessed between, by charset-normalizer's name, with the usual one."""
_LETTERS = {
    "cp1252": ("äöüß", "àâæçéèêëîïôœùûüÿ", "áéíñóúü", "áâãàçéêíóôõú", "àèéìíîòóùú", "åäö", "æøå", "ëéïóöü"),
    "cp1250": ("ąćęłńóśźż", "áčďéěíňóřšťúůýž", "áäčďéíĺľňóôŕšťúýž", "áéíóöőúüű", "ăâîșşțţ", "čćđšž"),
}
"""Letters beside a to z of Western and of Central European languages: German, French, Spanish, Portuguese, Italian,
Swedish, Danish and Dutch; Polish, Czech, Slovak, Hungarian, Romanian and Croatian."""
_SAMPLE, _BLOCK = 4096, 1 << 20
_SNIFFED_ROWS = 200
_ZERO_SHARE = 0.3
"""Share of zero bytes at even or odd positions from which on a text is UTF-16: one in Latin letters has almost half of
all bytes there, and no other encoding of a text has any."""


@contextmanager
def unpacked(path: Path) -> Iterator[IO[bytes]]:
    """Open a file, decompressed if it is compressed with gzip, whatever its name.

    :raises DataError: it is compressed otherwise, or the gzip file is damaged
    """
    with path.open("rb") as file:
        start = file.read(max(map(len, _OTHER_PACKING)))
    for magic, remedy in _OTHER_PACKING.items():
        if start.startswith(magic):
            raise DataError(f"{path} is {remedy}")
    try:
        with gzip.open(path, "rb") if start.startswith(_GZIP) else path.open("rb") as file:
            yield cast(IO[bytes], file)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {path}: its compression is damaged ({error}): copy the file again") from error


def is_compressed(path: Path) -> bool:
    """Whether a file is compressed with gzip."""
    with path.open("rb") as file:
        return file.read(len(_GZIP)) == _GZIP


def check_encoding(name: str) -> None:
    """Raise DataError unless Python reads texts in the encoding ``name``."""
    try:
        "a".encode(name)
    except (LookupError, ValueError) as error:
        raise DataError(f"encoding {name!r} is unknown: use a name such as windows-1252 or latin-1") from error


def encoding_of(path: Path, otherwise: str = "") -> str:
    """Return the encoding of a text file, by its Python name.

    :param otherwise: encoding of a file that is in neither UTF-8 nor UTF-16
    :raises DataError: the file is in another encoding than these, and the message has the first such line; or
        ``otherwise`` is no encoding
    """
    with unpacked(path) as file:
        start = file.read(_SAMPLE)
        for mark, encoding in _MARKS:
            if start.startswith(mark):
                return encoding
        for encoding, place in (("utf-16-le", 1), ("utf-16-be", 0)):
            at, elsewhere = start[place::2], start[1 - place :: 2]
            if at.count(0) > _ZERO_SHARE * len(at) > elsewhere.count(0):
                return encoding
    line = _line_not_in(path, "utf-8")
    if line is None:
        return "utf-8"
    if 0 in start:
        raise DataError(f"{path} is not a text file: it has bytes that no text has")
    if not otherwise:
        raise DataError(
            f"{path}, line {line}: the text is not in UTF-8: save the file in UTF-8 (in a spreadsheet: CSV UTF-8), or "
            "name its encoding: data.options.encoding = 'windows-1252' in an experiment on the dataset `table`, "
            "--encoding windows-1252 of init and index"
        )
    check_encoding(otherwise)
    line = _line_not_in(path, otherwise)
    if line is not None:
        raise DataError(f"{path}, line {line}: the text is not in {otherwise}: correct the name of the encoding")
    return otherwise


def guessed_encoding(path: Path) -> str:
    """Guess the encoding of a text file that is in neither UTF-8 nor UTF-16, by the words that it would have.

    :raises DataError: none of the common ones gives words
    """
    import charset_normalizer  # serving reads tables too, and has no use for it

    with unpacked(path) as file:
        sample = file.read(_BLOCK)
    found = charset_normalizer.from_bytes(sample, cp_isolation=list(_GUESSED)).best()
    if found is not None and found.encoding in _LETTERS:
        # charset-normalizer tells these two apart at random; the first is more frequent
        return _GUESSED[max(_LETTERS, key=lambda encoding: _of_one_language(sample, encoding))]
    if found is None:
        raise DataError(
            f"{path}: the text is in no common encoding: save the file in UTF-8, or name it with --encoding"
        )
    return _GUESSED[found.encoding]


def _of_one_language(sample: bytes, encoding: str) -> float:
    """Return the largest share of the letters and numbers beyond a to z, such as ³, that one language has."""
    letters = [letter for letter in sample.decode(encoding, "replace").lower() if letter > "z" and letter.isalnum()]
    return max(sum(letter in own for letter in letters) for own in _LETTERS[encoding]) / max(len(letters), 1)


def format_words(path: Path, encoding: str) -> str:
    """Describe encoding and compression of a text file in words.

    :param encoding: as returned by ``encoding_of``
    """
    name = {"utf-8": "UTF-8", "utf-8-sig": "UTF-8 with a byte order mark", "utf-16": "UTF-16"}.get(encoding, encoding)
    return f"{name}, compressed with gzip" if is_compressed(path) else name


def _line_not_in(path: Path, encoding: str) -> int | None:
    """Return the first line, from 1, that is not valid in ``encoding``; None if there is none."""
    decoder, lines = codecs.getincrementaldecoder(encoding)(), 0
    with unpacked(path) as file:
        while True:
            block = file.read(_BLOCK)
            try:
                lines += decoder.decode(block, final=not block).count("\n")
            except UnicodeDecodeError as error:
                return lines + error.object[: error.start].count(b"\n") + 1
            if not block:
                return None


def as_utf8(path: Path, folder: Path, otherwise: str = "") -> Path:
    """Return a text file that is not compressed and in UTF-8: ``path``, if it is, or a copy in ``folder``.

    :param otherwise: as in ``encoding_of``
    """
    encoding = encoding_of(path, otherwise)
    if encoding in ("utf-8", "utf-8-sig") and not is_compressed(path):
        return path
    copy = folder / "decoded"
    decoder = codecs.getincrementaldecoder(encoding)()
    with unpacked(path) as file, copy.open("wb") as target:
        while block := file.read(_BLOCK):
            target.write(decoder.decode(block).encode())
        target.write(decoder.decode(b"", final=True).encode())
    return copy


def delimiter_of(path: Path, names: Sequence[str], preferred: str) -> str:
    """Return the delimiter of a table with a header, in a file that ``as_utf8`` returned.

    :param names: columns that the table has; the first delimiter that separates all of them is its own
    :param preferred: delimiter that is tried first
    :returns: if none separates them, the one with which most rows have as many fields as the header
    """
    candidates = [preferred, *(one for one in DELIMITERS if one != preferred)]
    samples = {one: list(_records(path, one, _SNIFFED_ROWS)) for one in candidates}
    if names:
        for delimiter, rows in samples.items():
            if rows and set(names) <= set(rows[0]):
                return delimiter
    return max(candidates, key=lambda one: _regularity(samples[one]))


def _regularity(rows: Sequence[Sequence[str]]) -> tuple[float, int]:
    """Return the share of rows with the header's number of fields, at least 2, and this number."""
    width = len(rows[0]) if rows else 0
    if width < 2:
        return 0.0, 0
    return round(Counter(map(len, rows))[width] / len(rows), 1), width


def _records(path: Path, delimiter: str, most: int) -> Iterator[list[str]]:
    """Yield the first records; a file that is not valid with this delimiter ends there."""
    limit = csv.field_size_limit(sys.maxsize)
    try:
        with path.open(newline="", encoding="utf-8-sig") as lines:
            reader = csv.reader(lines, delimiter=delimiter)
            for _ in range(most):
                row = next(reader, None)
                if row is None:
                    return
                if row:
                    yield row
    except csv.Error:
        return
    finally:
        csv.field_size_limit(limit)
