"""``fed-distill load-test``: load on a running service, and what it answered.

Slow imports are inside the command.
"""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

from fed_distill.errors import ConfigError

if TYPE_CHECKING:
    from fed_distill.serving.load import LoadPlan, LoadResult

KEY = "FED_DISTILL_KEY"
_LATE_SECONDS = 0.005
"""Lateness of the generator, 99th percentile, above which its latencies say as much about itself."""
_BUSY = 0.8
"""Share of a core above which the generator is near its own limit."""


def load_test(
    url: Annotated[str, typer.Argument(metavar="URL", help="of a service, without a route", show_default=False)],
    rate: Annotated[float, typer.Option(min=0.01, max=1e6, help="requests a second")] = 100.0,
    seconds: Annotated[float, typer.Option(min=0.1, max=86_400, help="duration")] = 10.0,
    titles: Annotated[int, typer.Option(min=1, max=10_000, help="titles of each request")] = 10,
    arrivals: Annotated[str, typer.Option(metavar="poisson|constant", help="planned times")] = "poisson",
    distinct: Annotated[int, typer.Option(min=1, max=1_000_000, help="different titles, which repeat")] = 20_000,
    new_titles: Annotated[
        bool, typer.Option("--new-titles", help="no title is ever sent twice: nothing comes from the service's cache")
    ] = False,
    queries: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="queries, one a line, instead of made-up ones"),
    ] = None,
    key_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help=f"file with the key, instead of the variable {KEY}")
    ] = None,
    warm_up: Annotated[float, typer.Option(min=0.0, max=3600, help="seconds of the same load before")] = 0.0,
    connections: Annotated[int, typer.Option(min=1, max=10_000, help="connections at once")] = 64,
    timeout: Annotated[float, typer.Option(min=0.01, max=600, help="seconds after which a request has failed")] = 10.0,
    retry: Annotated[
        bool, typer.Option("--retry", help="send a request again, once, whose connection broke, as proxies do")
    ] = False,
    p99_ms: Annotated[float | None, typer.Option(min=0.0, help="exit with 1 if the 99th percentile is above")] = None,
) -> None:
    """Send requests at a fixed rate, whether or not earlier ones were answered; exit with 1 if one failed.

    Requests are POST /rank. Latency counts from the planned time. With --retry, a request has failed if its second
    attempt has.
    """
    try:
        from fed_distill.serving.load import Arrivals, LoadPlan, run_load, warmed
    except ImportError as error:
        raise ConfigError(f"load-test requires the package {error.name}: pip install 'fed-distill[serve]'") from error
    if arrivals not in get_args(Arrivals):
        raise ConfigError(f"--arrivals must be poisson or constant, not {arrivals!r}")
    plan = LoadPlan(
        rate=rate,
        seconds=seconds,
        titles=titles,
        arrivals=cast(Arrivals, arrivals),
        distinct=None if new_titles else distinct,
        queries=_lines(queries),
        connections=connections,
        timeout=timeout,
        retry=retry,
    )
    key = _key(key_file)
    if warm_up:
        run_load(url, warmed(plan, warm_up), key)
    found = run_load(url, plan, key)
    sys.stdout.write(report(plan, found))
    for warning in warnings(found):
        sys.stderr.write(f"warning: {warning}\n")
    if found.lost or (p99_ms is not None and 1000 * found.latency(99) > p99_ms):
        raise typer.Exit(1)


def report(plan: "LoadPlan", found: "LoadResult") -> str:
    """Return the lines about a load."""
    percentiles = "  ".join(f"p{percent} {1000 * found.latency(percent):.1f}" for percent in (50, 90, 99))
    hits = "/metrics does not tell" if found.hits is None else f"{100 * found.hits:.1f} % of texts, says /metrics"
    lines = {
        "sent": f"{found.planned:,} requests of {plan.titles} titles in {plan.seconds:g} s, {plan.arrivals}",
        "titles": f"{100 * found.repeated:.1f} % were sent before by this load",
        "cache hits": hits,
        "answered": f"{len(found.latencies):,}, {len(found.latencies) / found.seconds:.0f} a second",
        "latency ms": f"{percentiles}  max {1000 * found.latency(100):.1f}, from the planned time",
        "failed": _kinds(found.failed),
        **({"after retry": _kinds(found.lost)} if plan.retry else {}),
        "generator": f"{100 * found.cpu / found.seconds:.0f} % of a core, late by p99 "
        f"{1000 * _late(found):.1f} ms; {found.waited:,} requests waited for a connection",
    }
    return "".join(f"{name:<12}{text}\n" for name, text in lines.items())


def warnings(found: "LoadResult") -> list[str]:
    """Return what makes the figures of a load doubtful."""
    doubts = []
    if _late(found) > _LATE_SECONDS:
        doubts.append(
            f"the generator sent requests late, by {1000 * _late(found):.1f} ms (p99), which latencies contain"
        )
    if found.cpu > _BUSY * found.seconds:
        doubts.append("the generator used most of a core: lower --rate, or start several on other machines")
    if found.waited > found.planned / 100:
        doubts.append(
            f"{found.waited:,} requests waited for a connection, which latencies contain: raise --connections"
        )
    return doubts


def _late(found: "LoadResult") -> float:
    return sorted(found.late)[int(0.99 * (len(found.late) - 1))]


def _kinds(failures: "dict[str, int]") -> str:
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(failures.items()))
    return f"{sum(failures.values()):,}" + (f" ({kinds})" if kinds else "")


def _lines(path: Path | None) -> list[str]:
    if path is None:
        return []
    try:
        found = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read queries from {path}: {error}; write one a line, in UTF-8") from error
    if not found:
        raise ConfigError(f"{path} has no query: write one a line")
    return found


def _key(path: Path | None) -> str | None:
    """Return the key; it is never an argument, which everybody on the machine can read."""
    if path is None:
        return os.environ.get(KEY) or None
    try:
        found = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read a key from {path}: {error}") from error
    if not found or len(found.split()) != 1:
        raise ConfigError(f"{path} must have one key and nothing else")
    return found
