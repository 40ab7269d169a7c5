"""Tables of the Hugging Face hub, which a server on this machine stands for: the real client downloads from it."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pandas as pd
import pytest

from fed_distill.config import DataConfig, Experiment
from fed_distill.data import load
from fed_distill.data.hub_file import local_file
from fed_distill.errors import DataError
from fed_distill.experiment.absolute import absolute

COMMIT, OLDER = "a" * 40, "b" * 40
CONVERTED = "refs%2Fconvert%2Fparquet"
"""How the client writes the branch with a slash in an address; the hub converts every data set to Parquet there."""
GRADES = ("exact", "substitute", "complement", "irrelevant")
COLUMNS = {"text": "query", "pair": "title", "label": "grade", "merchant": "shop"}
LOAD = """
import json, logging, sys
from fed_distill.config import DataConfig
from fed_distill.data import load
from fed_distill.errors import DataError

logging.basicConfig(level="WARNING")
found = {}
for address in sys.argv[2:]:
    options = {"path": address, **json.loads(sys.argv[1])}
    proxy_from = "catalogue" if "catalogue" in options else "public"
    config = DataConfig(dataset="table", min_rows=20, proxy_size=30, proxy_from=proxy_from, options=options)
    try:
        data = load(config)
        texts = data.test.texts if proxy_from == "public" else data.proxy.texts
        found[address] = [data.account["cleaning"]["rows_kept"], sorted(texts)]
    except DataError as error:
        found[address] = str(error)
print(json.dumps(found))
"""


def rows(word):
    return pd.DataFrame(
        [
            {"query": f"{word} {query}", "title": f"title {one} of {query} at {shop}", "grade": grade, "shop": shop}
            for shop in ("north", "south", "east", "west")
            for query in range(30)
            for one, grade in enumerate(GRADES)
        ]
    )


@pytest.fixture
def hub(tmp_path):
    """A hub with one repository of two revisions, whose answers are those of huggingface.co; gives its address."""
    rows("new").to_parquet(tmp_path / "new.parquet")
    rows("old").to_csv(tmp_path / "old.csv", index=False)
    new, old = (tmp_path / "new.parquet").read_bytes(), (tmp_path / "old.csv").read_bytes()
    place = "/datasets/acme/grades/resolve"
    files = {f"{place}/{revision}/data/train.parquet": (COMMIT, new) for revision in ("main", COMMIT, CONVERTED)}
    files[f"{place}/{OLDER}/train.csv"] = (OLDER, old)

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.answer()

        def do_GET(self):
            self.wfile.write(self.answer())

        def answer(self):
            revisions = tuple(f"{place}/{one}/" for one in ("main", COMMIT, OLDER, CONVERTED))
            commit, content = files.get(self.path, ("", b""))
            self.send_response(200 if content else 404)
            if content:
                self.send_header("X-Repo-Commit", commit)
                self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            else:
                known = "EntryNotFound" if self.path.startswith(revisions) else "RevisionNotFound"
                self.send_header("X-Error-Code", known if self.path.startswith(place) else "RepoNotFound")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            return content

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def loaded(home, *addresses, columns=COLUMNS, options=(), **environment):
    """Load tables in a process with a Hugging Face cache of its own; give the outcome of each, and what was logged."""
    given = {**os.environ, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", **environment}
    command = [sys.executable, "-c", LOAD, json.dumps({"columns": columns, **dict(options)}), *addresses]
    done = subprocess.run(command, env=given, capture_output=True, text=True, check=True)
    return json.loads(done.stdout), done.stderr


def test_files_of_the_hub_are_read_at_their_revision_and_kept(hub, tmp_path):
    online = {"HF_ENDPOINT": hub, "HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0"}
    newest, pinned = (f"hf://datasets/acme/grades{at}/data/train.parquet" for at in ("", f"@{COMMIT}"))
    older = f"hf://datasets/acme/grades@{OLDER}/train.csv"
    missing = {
        "hf://datasets/acme/grades/data/test.parquet": "the hub has no file 'data/test.parquet' in acme/grades",
        f"hf://datasets/acme/grades@{'c' * 40}/train.csv": f"the hub has no revision {'c' * 40} of acme/grades",
        "hf://datasets/acme/other/train.csv": "the hub has no data set acme/other, or it is private",
    }
    found, log = loaded(tmp_path / "home", newest, pinned, older, *missing, **online)
    assert found[newest] == found[pinned]
    for address, word in ((newest, "new"), (older, "old")):
        kept, texts = found[address]
        assert kept == 480
        assert {text.split()[0] for text in texts} == {word}
    for address, problem in missing.items():
        assert found[address].startswith(f"{address}: {problem}"), found[address]
    assert log.count("may change") == 1
    assert f"this run reads {pinned}: name that" in log

    again, _ = loaded(tmp_path / "home", newest, older, HF_HUB_OFFLINE="1")
    assert again == {one: found[one] for one in (newest, older)}
    wrong, _ = loaded(tmp_path / "home", pinned, columns={**COLUMNS, "text": "words"}, HF_HUB_OFFLINE="1")
    assert wrong[pinned].startswith(f"{pinned} has no column 'words'; it has: query, title, grade, shop")


@pytest.mark.parametrize("revision", [CONVERTED, "refs/convert/parquet"])
def test_a_branch_of_the_hub_has_a_slash(hub, tmp_path, revision):
    online = {"HF_ENDPOINT": hub, "HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0"}
    address = f"hf://datasets/acme/grades@{revision}/data/train.parquet"
    found, log = loaded(tmp_path / "home", address, **online)
    assert found[address][0] == 480
    assert f"this run reads hf://datasets/acme/grades@{COMMIT}/data/train.parquet" in log


def test_a_catalogue_may_be_on_the_hub(hub, tmp_path):
    online = {"HF_ENDPOINT": hub, "HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0"}
    address, table = f"hf://datasets/acme/grades@{OLDER}/train.csv", tmp_path / "new.parquet"
    found, _ = loaded(tmp_path / "home", str(table), options={"catalogue": address}, **online)
    assert {text.split()[0] for text in found[str(table)][1]} == {"old"}

    missing = f"hf://datasets/acme/grades@{OLDER}/texts.csv"
    found, _ = loaded(tmp_path / "home", str(table), options={"catalogue": missing}, **online)
    assert found[str(table)].startswith(f"{missing}: the hub has no file 'texts.csv'")


def test_without_a_network_the_remedies_are_named(tmp_path):
    address = "hf://datasets/acme/grades/data/train.parquet"
    found, _ = loaded(tmp_path, address, HF_HUB_OFFLINE="1")
    assert found[address].startswith(
        f"{address} is not in the Hugging Face cache, and the hub cannot be reached: unset"
    )


@pytest.mark.parametrize(
    "address",
    [
        "hf://acme/grades/train.csv",
        "hf://datasets/acme/train.csv",
        "hf://datasets/acme/grades/*.parquet",
        "hf://",
        "hf://datasets/acme/grades/../../x.csv",
        "hf://datasets/acme/grades/./x.csv",
        "hf://datasets/acme/grades//etc/passwd",
        "hf://datasets/acme/grades@..%2F..%2F..%2Fvictim.txt/f.csv",
        "hf://datasets/acme/grades@../f.csv",
        "hf://datasets/acme/grades@main%00/f.csv",
        "hf://datasets/acme/grades@main%0A/f.csv",
    ],
)
def test_an_address_has_one_form(address):
    with pytest.raises(DataError, match=r"is not the address of one file: use hf://datasets/OWNER/NAME/FILE"):
        load(DataConfig(dataset="table", options={"path": address, "columns": COLUMNS}))


def test_a_path_of_this_machine_is_itself(tmp_path):
    with local_file(tmp_path / "rows.csv") as path:
        assert path == tmp_path / "rows.csv"


def test_an_address_is_not_made_absolute():
    address = "hf://datasets/acme/grades/data/train.parquet"
    experiment = Experiment.parse({"data": {"dataset": "table", "options": {"path": address, "columns": COLUMNS}}})
    assert absolute(experiment).data.options["path"] == address
