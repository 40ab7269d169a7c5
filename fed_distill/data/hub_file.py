"""Tables in data set repositories of the Hugging Face hub: ``hf://datasets/OWNER/NAME@REVISION/FILE``.

The file is downloaded by ``huggingface_hub`` into that library's cache, with the user's token if there is one. It is
read from there if the revision is a commit, or without a network.
"""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated
from urllib.parse import unquote

from pydantic import Field

from fed_distill.errors import DataError

LOG = logging.getLogger("fed_distill.data")

HUB = "hf://"
HubFile = Annotated[str, Field(pattern=f"^{HUB}")]
"""Address of a file on the hub."""
FORM = "hf://datasets/OWNER/NAME/FILE, or hf://datasets/OWNER/NAME@REVISION/FILE"
_ADDRESS = re.compile(
    r"hf://datasets/(?P<repository>[^/@]+/[^/@]+)"
    r"(@(?P<revision>refs/(convert/[\w.-]+|pr/\d+)(?=/)|[^/]+))?/(?P<file>[^*?\[\]]+)"
)
"""As `HfFileSystem` reads it: a slash in a revision's name is ``%2F``, but for the hub's own ``refs/``."""
_SEGMENT = frozenset({"", ".", ".."})
"""Segments that no path in a repository has."""
_COMMIT = re.compile(r"[0-9a-f]{40}")


@contextmanager
def local_file(path: Path | str) -> Iterator[Path]:
    """Give the path at which a table can be read: ``path`` itself, or the copy of a file of the hub.

    Errors that name the copy name the address instead.

    :raises DataError: the address has another form, the hub does not have or give the file, or it cannot be reached
    """
    if isinstance(path, Path):
        yield path
        return
    copy = _download(path)
    try:
        yield copy
    except DataError as error:
        raise DataError(str(error).replace(str(copy), path)) from error


def _download(address: str) -> Path:
    from huggingface_hub import hf_hub_download  # slow to import, and not always used
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    parts = _ADDRESS.fullmatch(address)
    revision = None if not parts or parts["revision"] is None else unquote(parts["revision"])
    segments = [*parts["file"].split("/"), *(revision or "main").split("/")] if parts else [""]
    if not parts or not _SEGMENT.isdisjoint(segments) or not f"{address}{revision}".isprintable():
        raise DataError(f"{address} is not the address of one file: use {FORM}")
    repository, file = parts["repository"], parts["file"]
    where = f"{address}: the hub"
    try:
        copy = Path(hf_hub_download(repository, file, repo_type="dataset", revision=revision))
    except LocalEntryNotFoundError as error:
        raise DataError(
            f"{address} is not in the Hugging Face cache, and the hub cannot be reached: unset HF_HUB_OFFLINE if it is "
            "set, connect to a network, or download the file elsewhere and name its path instead"
        ) from error
    except GatedRepoError as error:
        raise DataError(
            f"{where} asks for consent to the terms of {repository}: accept them there and run `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise DataError(
            f"{where} has no data set {repository}, or it is private: correct the name, or run `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise DataError(f"{where} has no revision {revision} of {repository}: correct it") from error
    except EntryNotFoundError as error:
        raise DataError(f"{where} has no file {file!r} in {repository}: correct its name") from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise DataError(f"cannot download {address}: {error}") from error
    # the copy is at .../snapshots/COMMIT/FILE
    commit = copy.parts[-1 - len(Path(file).parts)]
    if not _COMMIT.fullmatch(revision or "") and _COMMIT.fullmatch(commit):
        pinned = f"hf://datasets/{repository}@{commit}/{file}"
        LOG.warning("%s may change; this run reads %s: name that to read the same file later", address, pinned)
    return copy
