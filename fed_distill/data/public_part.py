"""The task and the proxy set as one JSON file, which the operator distributes to the sites.

Server and sites must use the same file, since soft labels on another proxy set would be wrong without an error. They
compare its fingerprint before the first round.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np

from fed_distill.data.examples import UNLABELED, Examples, Task
from fed_distill.errors import DataError
from fed_distill.storage.files import write_atomic
from fed_distill.storage.fingerprint import fingerprint


@dataclass(frozen=True)
class PublicPart:
    """The task and the unlabeled proxy set."""

    task: Task
    proxy: Examples

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the classes and the proxy texts, in order."""
        return fingerprint(classes=self.task.classes, texts=self.proxy.texts, pairs=self.proxy.pairs)

    def write(self, path: Path) -> None:
        """Write the file atomically."""
        content = {"task": asdict(self.task), "texts": self.proxy.texts, "pairs": self.proxy.pairs}
        write_atomic(path, json.dumps(content, ensure_ascii=False) + "\n")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file written by ``write``.

        :raises DataError: the file is missing or invalid
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            given = content["task"]
            task = Task(
                name=given["name"],
                classes=tuple(given["classes"]),
                pair=given["pair"],
                positive=given["positive"],
                gains=None if given["gains"] is None else tuple(given["gains"]),
            )
            texts, pairs = tuple(content["texts"]), content["pairs"]
            count = len(texts)
            proxy = Examples(
                texts,
                None if pairs is None else tuple(pairs),
                np.full(count, UNLABELED, dtype=np.int64),
                np.arange(count, dtype=np.int64),
                ("",) * count,
            )
        except OSError as error:
            raise DataError(
                f"cannot read the proxy set {path}: {error.strerror}; get proxy.json from the operator"
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is not a valid proxy set: {error!r}; get proxy.json from the operator") from error
        return cls(task, proxy)
