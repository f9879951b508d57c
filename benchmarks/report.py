"""What the benchmarks have measured, as tables and plots."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
from harness import Row, number
from matplotlib import pyplot

Results = dict[str, Any]

BEGIN, END = "<!-- results: python -m benchmarks -->\n", "<!-- end of results -->\n"

# Legible on white and on black: a plot in a page does not know which it is on.
TEXT, OURS, THEIRS = "#7a828c", "#2f81f7", "#9aa0a8"


def write_tables(results: Results, page: Path) -> None:
    """Put the tables where the page has them; what is written around them stays."""
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{page} has no lines {BEGIN!r} and {END!r}")
    page.write_text(before + BEGIN + "\n" + tables(results) + "\n" + END + after)


def tables(results: Results) -> str:
    rows = [(name, row_of(row)) for name, result in results.items() for row in result["rows"]]
    with_target = [(name, row) for name, row in rows if row.target is not None]
    others = [(name, row) for name, row in rows if row.target is None]
    met = sum(bool(row.is_met) for _, row in with_target)
    return "\n".join(
        [
            *conditions(results),
            "",
            f"{met} of {len(with_target)} targets are met.",
            "",
            "| what | against | ours | theirs | ratio | middle half | processor time | target | |",
            "|---|---|--:|--:|--:|---|--:|---|---|",
            *(
                line(row) + f" {target(row)} | {'met' if row.is_met else '**missed**'} |"
                for _, row in with_target
            ),
            "",
            "Peers and variants that there is no target for:",
            "",
            "| what | against | ours | theirs | ratio | middle half | processor time |",
            "|---|---|--:|--:|--:|---|--:|",
            *(line(row) for _, row in others),
            "",
        ]
    )


def conditions(results: Results) -> list[str]:
    """On what machine, with what, and when. (Said once, if it was the same for all.)"""
    groups: dict[str, list[str]] = {}
    for name, result in results.items():
        m = result["machine"]
        versions = ", ".join(f"{package} {v}" for package, v in m["versions"].items())
        text = f"{result['date']}, {m['processor']}, {m['system']}, {m['python']}, {versions}"
        groups.setdefault(text, []).append(f"{name} ({result['load']:.1f})")
    return [
        f"- {text}. Load of the machine when each began: {', '.join(names)}."
        for text, names in groups.items()
    ]


def row_of(values: dict[str, Any]) -> Row:
    low, high = values["quartiles"]
    return Row(**{**values, "quartiles": (low, high)})


def line(row: Row) -> str:
    low, high = row.quartiles
    theirs = "" if row.theirs is None else f"{number(row.theirs)} {row.unit}"
    ratio = "" if row.theirs is None else f"{number(row.ratio)}x"
    cpu = "" if row.cpu_ratio is None else f"{number(row.cpu_ratio)}x"
    return (
        f"| {row.what} | {row.against} | {number(row.ours)} {row.unit} | {theirs} | {ratio} | "
        f"{number(low)} to {number(high)} | {cpu} |"
    )


def target(row: Row) -> str:
    return f"{row.better} {row.target:g}{f' {row.unit}' if row.theirs is None else 'x'}"


# Plots.


def write_plots(results: Results, folder: Path) -> None:
    matplotlib.use("svg")
    matplotlib.rcParams.update(
        {
            "svg.fonttype": "none",  # text stays text
            "svg.hashsalt": "greendefer",  # the same numbers make the same file
            "font.family": "sans-serif",
            "font.size": 10,
            "text.color": TEXT,
            "axes.facecolor": "none",
            "axes.labelcolor": TEXT,
            "axes.edgecolor": TEXT,
            "axes.titlesize": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "xtick.color": TEXT,
            "ytick.color": TEXT,
            "grid.color": TEXT,
            "grid.alpha": 0.25,
            "legend.frameon": False,
        }
    )
    folder.mkdir(exist_ok=True)
    for name, plot in PLOTS.items():
        if name in results:
            figure = plot(results[name]["series"])
            figure.tight_layout()
            figure.savefig(folder / f"{name}.svg", transparent=True, metadata={"Date": None})
            pyplot.close(figure)


def bars(axes: Any, title: str, values: dict[str, float], unit: str, log: bool = False) -> None:
    """Horizontal bars, the first on top; ours in colour, and each with its number."""
    names = list(values)
    colours = [OURS if "greendefer" in name else THEIRS for name in names]
    drawn = axes.barh(names, list(values.values()), color=colours, height=0.65, log=log)
    axes.bar_label(drawn, [f"{number(v)} {unit}" for v in values.values()], padding=4, color=TEXT)
    axes.invert_yaxis()
    axes.set_title(title, loc="left")
    axes.tick_params(left=False, bottom=False, labelbottom=False)
    axes.tick_params(which="minor", bottom=False)
    axes.spines[["left", "bottom"]].set_visible(False)
    low, high = axes.get_xlim()
    axes.set_xlim(low, high**1.25 / low**0.25 if log else high * 1.3)


def rename(values: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    return {new: values[old] for old, new in names.items()}


def side_by_side(height: float, *plots: tuple[str, dict[str, float], str], width: float = 9) -> Any:
    """A figure of bars of the same things, which are named on the left only.

    :param plots: of each the title, the values, and their unit.
    """
    figure, all_axes = pyplot.subplots(1, len(plots), figsize=(width, height))
    for axes, plot in zip(all_axes, plots, strict=True):
        bars(axes, *plot)
    for axes in all_axes[1:]:
        axes.tick_params(labelleft=False)
    return figure


def each(values: dict[str, dict[str, float]], cost: str) -> dict[str, float]:
    return {name: costs[cost] for name, costs in values.items()}


def plot_calls(series: Any) -> Any:
    figure, both = pyplot.subplots(1, 2, figsize=(9, 3.2))
    for axes, (at_once, values) in zip(both, series["calls"].items(), strict=True):
        ours = {"greendefer": "greendefer", "with a timeout": "greendefer, timeout"}
        values = {ours.get(name, name): value for name, value in values.items()}
        bars(axes, f"A call that does nothing, {int(at_once):,} at once", values, "us")
    return figure


def plot_web_client(series: Any) -> Any:
    names = {
        "greendefer": "requests in greendefer",
        "deferToThread": "requests in deferToThread",
        "treq": "treq (native Twisted)",
    }
    values = rename(series["web_client"], names)
    return side_by_side(
        1.9,
        ("3,000 pages of 50 ms, 1,000 at once", each(values, "s"), "s"),
        ("The reactor's worst lateness meanwhile", each(values, "worst ms"), "ms"),
    )


def plot_echo(series: Any) -> Any:
    cases = {n: v for n, v in series["echo"].items() if n.isdigit()}
    names = {
        "epoll": "stock epoll",
        "native": "greendefer",
        "native, patched": "greendefer, patched",
        "poll, patched": "stock poll, patched",
        "stock asyncio": "stock asyncio",
        "asyncio": "greendefer asyncio",
        "asyncio, patched": "greendefer asyncio, patched",
    }
    plots = []
    for connections, values in cases.items():
        rates = {name: 1e3 / cost for name, cost in rename(values, names).items()}
        plural = "s" * (connections != "1")
        plots.append((f"{connections} connection{plural}", rates, "k/s"))
    figure = side_by_side(2.8, *plots, width=11)
    figure.suptitle("TCP echo: thousands of round trips a second (both ends on the reactor)")
    return figure


def plot_orm(series: Any) -> Any:
    names = {
        "persistent": "greendefer, persistent",
        "geventpool": "greendefer, geventpool",
        "deferToThread": "deferToThread",
        "sync_to_async, 20 threads": "sync_to_async, 20 threads",
        "sync_to_async, its one thread": "sync_to_async, its one thread",
    }
    values = rename(series["orm"], names)
    return side_by_side(
        2.4,
        ("A Django query, 50 at once", each(values, "us"), "us"),
        ("The loop's lateness meanwhile, p99", each(values, "p99 ms"), "ms"),
    )


def plot_web_server(series: Any) -> Any:
    names = {
        "epoll": "stock epoll",
        "native": "greendefer",
        "native, patched": "greendefer, patched",
        "poll, patched": "stock poll, patched",
    }
    values = rename(series["web_server"], names)
    return side_by_side(
        2.1,
        ("twisted.web: requests a second", {n: 1e6 / v["us"] for n, v in values.items()}, "/s"),
        ("Latency, p99", each(values, "p99 ms"), "ms"),
    )


def plot_growth(series: Any) -> Any:
    from growth import COSTS

    figure, axes = pyplot.subplots(figsize=(9, 4.2))
    colours = ["#e5534b", "#2f81f7", "#57ab5a", "#c69026", "#986ee2", "#39c5cf"]
    for (cost, what), colour in zip(COSTS.items(), colours, strict=True):
        for collector, style in (("on", "-"), ("off", ":")):
            values = series["growth"][collector][cost]
            label = what if collector == "on" else None
            xs = [int(n) for n in values]
            axes.plot(xs, list(values.values()), style, marker="o", ms=3, color=colour, label=label)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("calls in flight, each with a timeout and a timer")
    axes.set_ylabel("us (dotted: no garbage collection)")
    axes.grid(which="major")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


PLOTS: dict[str, Callable[[Any], Any]] = {
    "calls": plot_calls,
    "echo": plot_echo,
    "web_client": plot_web_client,
    "orm": plot_orm,
    "web_server": plot_web_server,
    "growth": plot_growth,
}
