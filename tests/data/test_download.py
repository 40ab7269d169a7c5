import hashlib
import io
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from fed_distill.config import DataConfig
from fed_distill.data import load, pricerunner
from fed_distill.data.download import fetch, find, read_text
from fed_distill.errors import DataError

CONTENT = b"a,b\n1,2\n"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A local web site: its address and its folder."""
    folder = tmp_path / "site"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", folder
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FED_DISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FED_DISTILL_DATA", raising=False)
    return tmp_path / "cache" / "data"


def zipped(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "."), content)
    return buffer.getvalue()


def test_a_download_is_verified_after_normalizing_and_kept(site: tuple[str, Path], cache: Path) -> None:
    url, folder = site
    (folder / "archive.zip").write_bytes(zipped(readme__txt=b"hello", table__csv=b"A, B\n1,2\n"))
    path = fetch(f"{url}/archive.zip", ".csv", "table.csv", SHA256, lambda raw: raw.replace(b"A, B", b"a,b"))
    assert path == cache / "table.csv"
    assert path.read_bytes() == CONTENT
    assert find("table.csv", None) == path
    assert [found.name for found in cache.iterdir()] == ["table.csv"]


@pytest.mark.parametrize(
    ("archive", "message"),
    [
        (zipped(table__csv=b"a,b\n1,3\n"), "table.csv from .* SHA-256"),
        (zipped(one__csv=CONTENT, two__csv=CONTENT), "2 files that end with .csv"),
        (b"no zip", "cannot download table.csv"),
    ],
)
def test_a_wrong_download_leaves_nothing(archive: bytes, message: str, site: tuple[str, Path], cache: Path) -> None:
    url, folder = site
    (folder / "archive.zip").write_bytes(archive)
    with pytest.raises(DataError, match=message):
        fetch(f"{url}/archive.zip", ".csv", "table.csv", SHA256, bytes)
    assert not cache.exists()


def test_a_failed_download_says_what_to_do(site: tuple[str, Path]) -> None:
    with pytest.raises(DataError, match=r"(?s)cannot download .*data.options.path.*FED_DISTILL_DATA"):
        fetch(f"{site[0]}/missing.zip", ".csv", "table.csv", SHA256, bytes)


def test_a_given_path_wins_over_the_environment_and_that_over_the_cache(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.mkdir(parents=True)
    (cache / "table.csv").write_bytes(CONTENT)
    assert find("table.csv", None) == cache / "table.csv"
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "table.csv.gz").write_bytes(b"")
    monkeypatch.setenv("FED_DISTILL_DATA", str(shared))
    assert find("table.csv", None) == shared / "table.csv.gz"
    own = tmp_path / "own.csv"
    own.write_bytes(CONTENT)
    assert find("table.csv", own) == own
    assert find("table.csv", shared) == shared / "table.csv.gz"
    with pytest.raises(DataError, match=r"table.csv or table.csv.gz or table.zip"):
        find("table.csv", cache.parent)


def test_pricerunner_is_downloaded_from_a_site_with_another_header(
    site: tuple[str, Path], pricerunner_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, folder = site
    content = pricerunner_file.read_bytes()
    rest = content.partition(b"\n")[2]
    uci = b"Product ID, Product Title, Merchant ID, Cluster ID, Cluster Label, Category ID, Category Label\n" + rest
    (folder / "837.zip").write_bytes(zipped(pricerunner_aggregate__csv=uci))
    monkeypatch.setattr(pricerunner, "URL", f"{url}/837.zip")
    monkeypatch.setattr(pricerunner, "SHA256", hashlib.sha256(content).hexdigest())
    data = load(DataConfig(dataset="pricerunner", min_rows=10, proxy_size=200))
    assert data.account["cleaning"]["rows_read"] == 400


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "torn.csv.gz").write_bytes(b"\x1f\x8bno gzip")
    (tmp_path / "latin.csv").write_bytes("Kühlschrank".encode("latin-1"))
    for name in ("torn.csv.gz", "latin.csv"):
        with pytest.raises(DataError, match=f"cannot read .*{name}"):
            read_text(tmp_path / name)
