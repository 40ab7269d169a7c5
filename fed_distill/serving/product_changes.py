"""Changes of the products in the index while it is served: saved first, then seen by all workers.

The saved index is what all workers have in common. A change reads it, applies itself and replaces it, as a whole and
under the folder's lock, so that no change of another worker is lost. Then this worker tells the others to load the new
index, and loads it. Each change writes the whole index: many products belong into one.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from fed_distill.data.cleaning import clean_served
from fed_distill.errors import CheckpointError, DataError
from fed_distill.serving.gate import Refused
from fed_distill.serving.index import Product, ProductIndex
from fed_distill.serving.index_files import IndexBusy, change_index
from fed_distill.serving.runtime import ExportedStudent
from fed_distill.serving.service_config import ServeConfig
from fed_distill.serving.students import Students
from fed_distill.text.cleaning import mask

_WAIT_SECONDS = 5.0
"""For a change of another process, before a request is answered that it should be sent again."""
_PAUSE_SECONDS = 0.05
_USEARCH = "an index of the engine usearch is not changed by requests: build it again with fed-distill index"
_BUSY = "another change of the index is being written: try again"
_FAILED = "the saved index cannot be read or written now, and was not changed: the log has the reason"
_log = logging.getLogger(__name__)


class Changed(NamedTuple):
    """What a change did: the numbers of products added, replaced and deleted, and of all products after it."""

    added: int
    replaced: int
    deleted: int
    products: int


class ProductChanges:
    """Changes the index of ``[service]``. For one event loop."""

    def __init__(self, config: ServeConfig, students: Students, tell_others: Callable[[], None]) -> None:
        """tell_others: called when a new index is saved, so that other workers load it."""
        self._config, self._students, self._tell_others = config, students, tell_others
        self._changing = asyncio.Lock()

    async def put(self, ids: Sequence[str], titles: Sequence[str]) -> Changed:
        """Add products, or replace the titles of those that are in the index; either all or none.

        :param ids: distinct
        :param titles: one for each id
        :raises DataError: a title is empty or longer than the student's training data, or there is no index
        :raises Refused: the index would have too many products, is of the engine ``usearch``, or cannot be read or
            written now
        """
        folder, student = self._indexed()
        cleaned = clean_served(titles, "products", student.max_characters)
        cleaned = clean_served(cleaned, "products", student.max_characters)  # what masks personal data may be longer
        products = [Product(*one) for one in zip(ids, cleaned, strict=True)]
        most = self._config.limits.products

        def put(index: ProductIndex) -> Changed:
            known = [product for product in products if product.id in index]
            new = [product for product in products if product.id not in index]
            if new and len(index) + len(new) > most:
                raise Refused(422, "invalid", f"the index may have {most:,} products (limits.products): delete some")
            index.replace(known)
            index.add(new)
            return Changed(len(new), len(known), 0, len(index))

        return await self._change(folder, student, put)

    async def delete(self, ids: Sequence[str]) -> Changed:
        """Delete products; an id that is not in the index changes nothing. Errors are those of ``put``."""
        folder, student = self._indexed()

        def delete(index: ProductIndex) -> Changed:
            known = [id for id in dict.fromkeys(ids) if id in index]
            if known:
                index.delete(known)
            return Changed(0, 0, len(known), len(index))

        return await self._change(folder, student, delete)

    def _indexed(self) -> tuple[Path, ExportedStudent]:
        served, folder = self._students.current(), self._config.service.index
        if folder is None:
            raise DataError("this service has no index: set service.index to the folder of fed-distill index")
        if served is None:
            raise Refused(503, "not_ready", "no student is loaded yet: see /ready", {"Retry-After": "1"})
        return folder, served.student

    async def _change(
        self, folder: Path, student: ExportedStudent, change: Callable[[ProductIndex], Changed]
    ) -> Changed:
        def only_exact(index: ProductIndex) -> Changed:
            if index.engine != "exact":  # its graph would be built anew by each change, for minutes
                raise Refused(422, "invalid", _USEARCH)
            return change(index)

        async with self._changing:
            # A link that is switched meanwhile must not lead half of the files to another release.
            place = await asyncio.to_thread(folder.resolve)
            try:
                changed = await _patiently(partial(change_index, place, student, student.digest, only_exact))
            except IndexBusy:
                raise Refused(503, "overloaded", _BUSY, {"Retry-After": "1"}) from None
            except (DataError, CheckpointError, OSError) as error:  # which names a folder
                _log.error("the index was not changed: %s", mask(str(error)))
                raise Refused(503, "not_ready", _FAILED, {"Retry-After": "10"}) from None
        self._tell_others()
        await self._students.reload()
        return changed


async def _patiently(change: Callable[[], Changed]) -> Changed:
    """Return what ``change`` returns, in a thread; while another process writes, try again for some seconds."""
    deadline = time.monotonic() + _WAIT_SECONDS
    while True:
        try:
            return await asyncio.to_thread(change)
        except IndexBusy:
            if time.monotonic() > deadline:
                raise
        await asyncio.sleep(_PAUSE_SECONDS)
