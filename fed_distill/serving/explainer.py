"""Explanations of a served student, computed by the trained one with torch, a few at a time beside the scoring."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Self

from fed_distill.errors import ModelError
from fed_distill.serving.batching import Overloaded
from fed_distill.serving.scorer import Scorer

if TYPE_CHECKING:
    from fed_distill.models.word_contributions import Explanation
    from fed_distill.serving.student import Student

_MOST_WAITING = 16
"""Explanations at once; one takes tens of milliseconds."""


class Explainer:
    """Explains scores in a thread of its own."""

    def __init__(self, student: "Student") -> None:
        self._student = student
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="explaining")
        self._waiting = 0

    @classmethod
    def load(cls, trained: Path, served: Scorer) -> Self:
        """Load the student that ``served`` is an export of.

        :raises ModelError: it cannot be loaded or explained, or is another student
        :raises DataError: its task has no gains
        :raises ConfigError: a package is missing
        """
        from fed_distill.serving.explain import explain
        from fed_distill.serving.student import load_student

        student = load_student(trained)
        if student.digest != served.digest.partition("-")[0]:  # a variant that changes vectors much has a suffix
            raise ModelError(
                f"{trained} is not the student that is served: service.trained must be the run of the "
                "export; if a link leads to both, switch the link"
            )
        explain(student, "a", "b")  # of a student that cannot be explained, the error comes now
        return cls(student)

    async def explain(self, query: str, title: str) -> "Explanation":
        """Return contributions of words; errors are those of ``serving.explain.explain``, and Overloaded."""
        from fed_distill.serving.explain import explain

        if self._waiting >= _MOST_WAITING:
            raise Overloaded
        self._waiting += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._executor, explain, self._student, query, title)
        finally:
            self._waiting -= 1
