"""Times of purchases: days are those of the shop's clock, whatever its zone."""

from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest

from fed_distill.data.shop.tables import times_of
from fed_distill.errors import DataError


def read(*values: object, kind: pa.DataType | None = None) -> list[str]:
    return times_of(pa.table({"time": pa.array(values, kind)}), "time", Path("sold.csv")).astype(str).tolist()


@pytest.mark.parametrize("offset", ["", "Z", "+02:00", " +02:00", "-0800", "+14", ".5-08:00"])
def test_a_day_is_that_of_the_shops_clock(offset: str) -> None:
    """In UTC, half past midnight in Berlin is the day before: a purchase of a campaign's first day was before it."""
    assert read(f"2024-03-01T00:30:00{offset}", f"2024-03-01 23:30:00{offset}") == [
        "2024-03-01T00:30:00",
        "2024-03-01T23:30:00",
    ]


def test_a_column_of_times_with_a_zone_is_read_in_it() -> None:
    time = datetime(2024, 2, 29, 23, 30, tzinfo=UTC)
    assert read(time, kind=pa.timestamp("us", tz="Europe/Berlin")) == ["2024-03-01T00:30:00"]
    assert read(time, kind=pa.timestamp("us", tz="UTC")) == ["2024-02-29T23:30:00"]


def test_a_date_has_no_offset() -> None:
    assert read("2024-03-01", " 9999-12-31 ") == ["2024-03-01T00:00:00", "9999-12-31T00:00:00"]


@pytest.mark.parametrize("value", ["now", "today", "-5", "1e9", "2024-13-01", "24:00", "NaT", "+01:00"])
def test_what_is_no_time_is_named(value: str) -> None:
    with pytest.raises(DataError, match=r"row 2: 'time' is .* no time"):
        read("2024-03-01", value)
