"""A summary that is JSON but no run's, as after a file of another program was copied over it."""

from pathlib import Path

import pytest

from fed_distill.errors import CheckpointError
from fed_distill.reporting.result import Result
from fed_distill.reporting.run_comparison import compare_runs
from fed_distill.reporting.store import SUMMARY


@pytest.mark.parametrize("content", ["[]", "{}", "null", '"text"', '{"name": "a", "task": "relevance"}'])
def test_what_is_no_summary_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / SUMMARY).write_text(content, encoding="utf-8")
    for read in (lambda: Result(tmp_path)._repr_html_(), lambda: compare_runs(tmp_path, tmp_path)):
        with pytest.raises(CheckpointError, match=r"summary\.json is not a run's summary"):
            read()
