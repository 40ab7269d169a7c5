"""Describe a dataset as text and as a figure of the merchants' sizes and label skew.

With remote merchants, only the server's data are described: the public part and the proxy set.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fed_distill.data.examples import FederatedData
from fed_distill.data.proxy_account import repeats_server

PICTURE = "merchants.png"
NAMED = 10
"""Maximum number of merchants of the server that are named."""
_GRADE_COLORS = ("#1b6ca8", "#5aa9a3", "#e8c468", "#d3d7dd")
_MORE_COLORS = (
    "#1b6ca8", "#5aa9a3", "#e8c468", "#d1495b", "#8d6a9f", "#7fb069", "#e68a4f", "#4f5d75", "#c9ada7", "#9ad1d4",
    "#6b705c",
)  # fmt: skip
_OTHER = "#d3d7dd"
_INK = "#2b2d33"
_FAINT = "#8a8f98"
_ELSEWHERE = 'data.clients = "elsewhere": the merchants are at remote sites'


def describe(data: FederatedData, folder: Path | None = None) -> str:
    """Return the account as text, with the largest merchants whose data the server has, and write the figure
    ``merchants.png`` into ``folder``, if there is one.

    There is no figure with remote merchants.
    """
    text = f"{render(data.account)}\n\nThe server's merchants: {_largest(data.public.merchants)}"
    if folder is None:
        return text
    if not data.merchants:
        return f"{text}\n\nNo figure of the merchants: their rows and labels are at remote sites"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / PICTURE
    draw_merchants(data, path)
    return f"{text}\n\nFigure of the merchants: {path}"


def _largest(names: Iterable[str]) -> str:
    """Return the most frequent names, and the number of others."""
    found = [name for name, _ in Counter(names).most_common()]
    others = f" and {len(found) - NAMED:,} more" if len(found) > NAMED else ""
    return ", ".join(found[:NAMED]) + others


def render(account: Mapping[str, Any]) -> str:
    """Format the account as aligned text, about 100 columns wide."""
    cleaning, merchants = account["cleaning"], account["merchants"]
    elsewhere = not merchants["clients"]
    lines = [f"{account['dataset']}, task {account['task']}", "", "Cleaning"]
    lines.append(_row("rows read", cleaning["rows_read"]))
    labels = ", ".join(f"{label or 'empty'}: {count:,}" for label, count in cleaning.get("unknown_labels", {}).items())
    notes = {"unknown label": labels}
    lines.extend(
        _row(f"dropped: {reason}", count, notes.get(reason, "")) for reason, count in cleaning["dropped"].items()
    )
    lines.append(_row("rows kept", cleaning["rows_kept"]))
    lines.extend(_row(f"masked: {kind}", count) for kind, count in cleaning["masked"].items())
    lines.extend(
        f"  {what:<33}{count:>11,}" if isinstance(count, int) else f"  {what:<33}{count:>11}"
        for what, count in cleaning.get("purchases", {}).items()
    )
    if cleaning["unlabeled_merchants"]:
        lines.append(_row("merchants without a known label", len(cleaning["unlabeled_merchants"])))
    lines += ["", "Merchants", _row("all", merchants["all"])]
    note = "all local merchants" if elsewhere else f"{merchants['too_small']} of them too small to be clients"
    lines.append(_row("public (the server's)", merchants["public"], note))
    lines.append(_row("clients", merchants["clients"], _ELSEWHERE if elsewhere else ""))
    if "cold" in merchants:
        lines.append(_row("cold (held out whole)", merchants["cold"]))
    if "limited_to" in account and not elsewhere:
        lines.append(_row("clients kept (data.max_merchants)", account["limited_to"]["merchants"]))
    if merchants["single_class"]:
        lines.append(_row("clients with one class only", len(merchants["single_class"])))
    lines += ["", "Split" + " " * 19 + "".join(f"{part:>11}" for part in ("train", "valid", "test"))]
    clients = [] if elsewhere else [("rows, clients", account["rows"]["clients"])]
    for label, counts in (("groups of rows", account["groups"]), ("rows, public", account["rows"]["public"]), *clients):
        lines.append(f"  {label:<22}" + "".join(f"{counts[part]:>11,}" for part in ("train", "valid", "test")))
    lines.append("  A group is the rows of one query, product, text or customer, by task; all of it is in one part.")
    lines += ["", *_class_table(account)]
    lines += ["", *_proxy_lines(account["proxy"])]
    if "proxy_set" in account:
        lines += ["", f"The proxy set has {account['proxy_set']}"]
    lines += ["", "Ranking"]
    for part, ranking in account["ranking"].items():
        lines.append(
            f"  {part:<22}none"
            if ranking is None
            else f"  {part:<22}{ranking['queries']:>11,} queries, {ranking['candidates_per_query']:g} candidates each, "
            f"{ranking['best_grade_per_query']:g} of the best grade"
        )
    return "\n".join(lines)


def _row(label: str, count: int, note: str = "") -> str:
    return f"  {label:<33}{count:>11,}" + (f"   {note}" if note else "")


def _proxy_lines(proxy: Mapping[str, Any]) -> list[str]:
    known = f"{proxy['in_server_rows']:.1%} of them are in the server's labelled examples"
    lines = ["Proxy set", _row("distinct texts", proxy["texts"], known)]
    if repeats_server(proxy):
        lines += [
            "  It repeats the server's labelled examples, so that the teacher can add little. If the merchants'",
            '  texts are public, set data.proxy_from = "catalogue" and, for a table, data.options.public_columns',
            "  (docs: The proxy set)",
        ]
    if "merchant_words" in proxy:
        unknown = f"{proxy['unknown_to_server']:.1%} of them are not in the server's labelled examples;"
        lines.append(_row("word types of the clients", proxy["merchant_words"], unknown))
        lines.append(f"{'':<49}of these, {proxy['covered']:.1%} are in the proxy set")
    return lines


def _class_table(account: Mapping[str, Any]) -> list[str]:
    """Format the class counts: tables in rows and classes in columns, transposed beyond six classes."""
    examples = {table: count for table, count in account["examples"].items() if count or table != "train"}
    classes = account["classes"]
    names = list(next(iter(classes.values())))
    if len(names) <= 6:
        lines = ["Examples" + " " * 10 + "".join(f"{name:>14}" for name in ("all", *names))]
        for table, count in examples.items():
            shares = (
                "".join(f"{classes[table][name] / max(count, 1):>14.1%}" for name in names) if table in classes else ""
            )
            lines.append(f"  {table:<16}{count:>14,}" + (shares or "     (unlabeled)"))
        return lines
    width = min(max(map(len, names)), 30)
    lines = [f"{'Examples':<{width + 2}}" + "".join(f"{table:>14}" for table in examples)]
    lines.append(f"  {'all':<{width}}" + "".join(f"{count:>14,}" for count in examples.values()))
    most = classes["train" if "train" in examples else "public"]
    for name in sorted(names, key=lambda name: -most[name]):
        cells = (
            f"{classes[table][name] / max(count, 1):.1%}" if table in classes else "-"
            for table, count in examples.items()
        )
        lines.append(f"  {name[:width]:<{width}}" + "".join(f"{cell:>14}" for cell in cells))
    return lines


def draw_merchants(data: FederatedData, path: Path) -> None:
    """Draw the training rows of each client, largest first, above the class shares of its training examples."""
    rows = data.account["client_rows"]
    clients = sorted(data.merchants.values(), key=lambda merchant: (-rows[merchant.name], merchant.name))
    sizes = np.array([rows[merchant.name] for merchant in clients])
    counts = np.stack([np.bincount(merchant.train.labels, minlength=len(data.task.classes)) for merchant in clients])
    shares = counts / counts.sum(axis=1, keepdims=True)
    figure = Figure(figsize=(9.6, 6.2), dpi=150, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1.25))
    figure.suptitle(
        f"{data.account['dataset']} · {data.task.name}: {len(clients):,} clients, "
        f"{data.account['merchants']['public']:,} public merchants",
        x=0.012, ha="left", fontsize=13, fontweight="bold", color=_INK,
    )  # fmt: skip
    _draw_sizes(upper, sizes)
    _draw_shares(lower, shares, data.task.classes, sort=data.task.gains is None)
    names = [merchant.name for merchant in clients]
    if len(names) <= 16:
        lower.set_xticks(range(len(names)), names, rotation=35, ha="right", fontsize=8)
    else:
        lower.set_xlabel("clients, largest first", fontsize=9, color=_INK)
    figure.savefig(path, metadata={"Software": None})


def _draw_sizes(axes: Axes, sizes: npt.NDArray[np.int64]) -> None:
    positions = np.arange(len(sizes))
    axes.fill_between(_steps(positions), 0, np.repeat(sizes, 2), color=_GRADE_COLORS[0], linewidth=0)
    _separate(axes, sizes)
    median = float(np.median(sizes))
    axes.axhline(median, color="#d1495b", linewidth=1.1)
    axes.annotate(
        f"median {median:,.0f}", (1, median), xycoords=("axes fraction", "data"), xytext=(-4, 4),
        textcoords="offset points", ha="right", va="bottom", fontsize=8.5, color="#d1495b",
    )  # fmt: skip
    axes.set_ylabel("training rows", fontsize=9, color=_INK)
    axes.set_ylim(0, sizes.max() * 1.08)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.grid(axis="y", color="#eceef1", linewidth=0.8)
    axes.set_axisbelow(True)
    _plain(axes)


def _draw_shares(axes: Axes, shares: npt.NDArray[np.float64], classes: tuple[str, ...], sort: bool) -> None:
    order = np.argsort(-shares.mean(axis=0), kind="stable") if sort else np.arange(len(classes))
    colors = _GRADE_COLORS if len(classes) <= 4 else _MORE_COLORS
    shown = order[: len(colors)]
    layers = [(classes[index], shares[:, index], color) for index, color in zip(shown, colors, strict=False)]
    if len(order) > len(shown):
        layers.append((f"{len(order) - len(shown)} more", shares[:, order[len(shown) :]].sum(axis=1), _OTHER))
    bottom = np.zeros(len(shares))
    for name, share, color in layers:
        top = bottom + share
        axes.fill_between(
            _steps(np.arange(len(shares))),
            np.repeat(bottom, 2),
            np.repeat(top, 2),
            color=color,
            linewidth=0,
            label=name,
        )
        bottom = top
    _separate(axes, np.ones(len(shares)))
    axes.set_xlim(-0.5, len(shares) - 0.5)
    axes.set_ylim(0, 1)
    axes.set_ylabel("share of each class", fontsize=9, color=_INK)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.legend(
        loc="upper left",
        bbox_to_anchor=(1.0, 1.0),
        frameon=False,
        fontsize=8.5,
        labelcolor=_INK,
        reverse=True,
        handlelength=1.0,
    )
    _plain(axes)


def _separate(axes: Axes, heights: npt.NDArray[Any]) -> None:
    """Draw white gaps between the bars, if they are few enough to be distinguished."""
    if len(heights) <= 60:
        axes.vlines(np.arange(len(heights) - 1) + 0.5, 0, heights[:-1], color="white", linewidth=1.0)


def _steps(positions: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return left and right edge of each merchant's bar, ``[2 * merchants]``."""
    return np.stack([positions - 0.5, positions + 0.5], axis=1).ravel()


def _plain(axes: Axes) -> None:
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_FAINT)
    axes.tick_params(colors=_FAINT, labelsize=8.5, length=0)
