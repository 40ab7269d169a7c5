"""Memory of an idle service: each worker's, and what an indexed product adds. It does not depend on the machine's load.

Products have random vectors and titles of one length, so that none is embedded. A worker's memory is resident pages
(``Rss``): its own (``Anonymous``), and those of files, such as libraries and the vectors of the index, which all
workers share (Linux, proc_pid_smaps(5)). Searches before the measurement bring the vectors in.

    python experiments/benchmarks/serving_memory.py EXPORT
"""

import argparse
import json
import re
import signal
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

import numpy as np

from fed_distill.serving.index import ProductBlock, ProductIndex
from fed_distill.serving.index_files import save_index
from fed_distill.serving.runtime import ExportedStudent, load_exported
from fed_distill.serving.service_config import ServiceTable
from fed_distill.serving.vector_cache import VectorCache

_TITLE = 60
"""Characters of a title."""
_SEARCHES = 8
_CACHED = ServiceTable.model_fields["cached_vectors"].default


def main() -> None:
    """Measure and print one line a service."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("export", type=Path, help="folder that fed-distill export wrote")
    parser.add_argument("--variants", default="float32,int8", help="variants, separated by commas")
    parser.add_argument("--products", default="100000,300000", help="numbers of products, separated by commas")
    parser.add_argument("--workers", type=int, default=2, help="workers of each service, two or more")
    chosen = parser.parse_args()
    print("variant   products  index MB  supervisor MB  worker MB: own  of files  own bytes a product")
    for variant in chosen.variants.split(","):
        student = load_exported(chosen.export, variant)
        alone = _measure(chosen, student, variant, 0)
        for products in map(int, chosen.products.split(",")):
            _measure(chosen, student, variant, products, alone)
    full = _cached(student.embed([]).shape[1], _CACHED)
    print(f"{_CACHED:,} cached titles: {full / 1e6:.0f} MB of each worker's own")


def _measure(
    chosen: argparse.Namespace, student: ExportedStudent, variant: str, products: int, alone: float | None = None
) -> float:
    """Print the line of a service, and return the worker's own memory, bytes; alone: that without an index."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {"student": str(chosen.export.resolve()), "variant": variant, "workers": chosen.workers, "port": 0}
        size = 0
        if products:
            size = save_index(_index(student, products), Path(folder, "index"), student.digest)
            settings["index"] = "index"
        lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
        Path(folder, "serve.toml").write_text("\n".join(["[service]", *lines, ""]))
        command = [sys.executable, "-m", "fed_distill.cli.main", "serve", folder]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as service:
            try:
                workers = _started(service, chosen.workers, products)
                own, of_files = (float(np.mean(kind)) for kind in zip(*map(_memory, workers), strict=True))
                supervisor = sum(_memory(service.pid))
            finally:
                service.send_signal(signal.SIGTERM)
    each = "" if alone is None else f"{(own - alone) / products:.0f}"
    print(
        f"{variant:8s} {products:9,d}  {size / 1e6:8.1f}  {supervisor / 1e6:13.0f}  {own / 1e6:14.0f}"
        f"  {of_files / 1e6:8.0f}  {each:>19s}",
        flush=True,
    )
    return own


def _index(student: ExportedStudent, products: int) -> ProductIndex:
    draw = np.random.default_rng(0)
    width = student.embed([]).shape[1]
    vectors = draw.normal(size=(products, width)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ids = [f"product-{number}" for number in range(products)]
    titles = [f"title of product {number} ".ljust(_TITLE, "x") for number in range(products)]
    return ProductIndex(student, ProductBlock(vectors, np.ones(products, dtype=np.bool_), ids, titles))


def _started(service: "subprocess.Popen[str]", workers: int, products: int) -> list[int]:
    """Wait until the service answers, search, and return the workers' process ids."""
    assert service.stderr is not None
    found: list[int] = []
    for line in service.stderr:
        if worker := re.search(r"worker \d+ is process (\d+)", line):
            found.append(int(worker[1]))
        if address := re.search(r"serving on (http://127\.0\.0\.1:\d+)", line):
            if products:
                _search(address[1], workers)
            return found
    raise SystemExit("the service has not started")


def _search(address: str, workers: int) -> None:
    """Search in each worker: so many connections, one after the other, that all have accepted some."""
    body = json.dumps({"query": "usb hub"}).encode()
    for _ in range(_SEARCHES * workers):
        request = urllib.request.Request(f"{address}/search", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            answer.read()


def _memory(process: int | str) -> tuple[float, float]:
    """Return the resident bytes of a process: its own, and those of files."""
    text = Path(f"/proc/{process}/smaps_rollup").read_text()
    found = dict(re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE))
    rss, own = (1024.0 * int(found[name]) for name in ("Rss", "Anonymous"))
    return own, rss - own


def _cached(width: int, titles: int) -> float:
    """Return the bytes of a full cache of vectors."""
    before, vector = _memory("self")[0], np.ones(width, dtype=np.float32)
    cache = VectorCache(titles, width)
    for number in range(titles):
        cache.put([f"title of product {number} ".ljust(_TITLE, "x")], [vector])
    return _memory("self")[0] - before


if __name__ == "__main__":
    main()
