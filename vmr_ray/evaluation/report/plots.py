"""The report's figures as PNG, each for light and for dark pages. Without matplotlib's global state."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vmr_ray.evaluation.controls import SYSTEMS
from vmr_ray.evaluation.metrics import metric_label
from vmr_ray.evaluation.report.cases import Case

WIDTH, DPI = 5.2, 160  # inches; narrow, so that the words stay legible on a phone


@dataclass(frozen=True)
class Colours:
    """The colours of one page. Every line also has its own dash pattern."""

    ink: str
    soft: str
    card: str
    line: str
    model: str
    constant: str
    truth: str


THEMES = {
    "light": Colours("#1b1d22", "#5d6370", "#ffffff", "#d9dade", "#2a6fdb", "#b3500f", "#15803d"),
    "dark": Colours("#eceef2", "#a3a9b5", "#1f2228", "#363b45", "#6ea8ff", "#ff9d5c", "#4cc38a"),
}
DASHES = {"model": "-", "constant": "--", "shuffled": ":"}


@dataclass(frozen=True)
class Picture:
    """A figure as PNG for light and dark pages, and what it shows in words."""

    name: str
    alt: str
    light: bytes
    dark: bytes


def plot_recall(curves: Mapping[str, Sequence[float]]) -> Picture:
    """R@1 against IoU, see `measurements.recall_curves`."""

    def draw(ax: Axes, c: Colours) -> None:
        for name in ("model", "constant", "shuffled"):
            if name in curves:
                ax.plot(
                    curves["iou"], curves[name], DASHES[name], color=_colour(c, name), label=SYSTEMS[name]
                )
        ax.set(xlabel="IoU that counts as a hit", ylabel="R@1, percent", xlim=(0, 1), ylim=(0, 100))
        ax.legend(frameon=False)

    half = min(range(len(curves["iou"])), key=lambda i: abs(curves["iou"][i] - 0.5))
    values = ", ".join(f"{SYSTEMS[n]} {curves[n][half]:.1f}" for n in SYSTEMS if n in curves)
    return _render("recall", f"Curves of R@1 against IoU. At IoU 0.5, in percent: {values}.", draw)


def plot_bins(name: str, rows: Sequence[Mapping[str, Any]], what: str) -> Picture:
    """Bars of mIoU: one group a bin, with the model and the constant."""

    def draw(ax: Axes, c: Colours) -> None:
        at = np.arange(len(rows))
        for shift, system in ((-0.2, "model"), (0.2, "constant")):
            heights = [row[system].get("miou", 0.0) for row in rows]
            bars = ax.bar(at + shift, heights, 0.38, color=_colour(c, system), label=SYSTEMS[system])
            ax.bar_label(bars, fmt="%.0f", fontsize=9, color=c.ink, padding=1)
        ax.grid(False, axis="x")
        ax.set_xticks(at, [f"{row['bin'].replace(' and longer', '+')}\nn={row['queries']}" for row in rows])
        ax.tick_params(axis="x", labelsize=9 if len(rows) > 5 else 10)
        ax.set(xlabel=what, ylabel="mIoU, percent", ylim=(0, 100))
        ax.legend(frameon=False, ncols=2, loc="upper right")

    values = "; ".join(
        f"{row['bin']}: {row['model']['miou']:.1f} of {row['queries']} queries" for row in rows
    )
    return _render(name, f"Bars of the model's mIoU by {what}. {values}.", draw)


def plot_reliability(rows: Sequence[Mapping[str, float]]) -> Picture:
    """How often queries are shown, by the probability that the model gave, see `presence.reliability`."""

    def draw(ax: Axes, c: Colours) -> None:
        ax.plot([0, 1], [0, 1], ":", color=c.soft)
        ax.plot([row["probability"] for row in rows], [row["shown"] for row in rows], "-o", color=c.model)
        for row in rows:
            ax.annotate(
                f"{row['queries']:.0f}",
                (row["probability"], row["shown"]),
                (0, 7),
                textcoords="offset points",
                ha="center",
                fontsize=9,
                color=c.soft,
            )
        ax.set(xlabel="probability", ylabel="share that is shown", xlim=(0, 1), ylim=(0, 1.08))

    values = ", ".join(f"{row['probability']:.2f}: {row['shown']:.2f}" for row in rows)
    return _render("reliability", f"Share of the queries that is shown, by probability. {values}.", draw)


def plot_boundary_errors(errors: np.ndarray, alt: str) -> Picture:
    """Histograms of the errors [n, 2] of starts and ends, in seconds."""
    reach = max(1.0, float(np.quantile(np.abs(errors), 0.98))) if len(errors) else 1.0
    edges = np.linspace(-reach, reach, 42).tolist()

    def draw(ax: Axes, c: Colours) -> None:
        ax.hist(errors[:, 0], edges, color=c.model, alpha=0.55, label="start")
        ax.hist(errors[:, 1], edges, histtype="step", color=c.constant, linewidth=1.8, label="end")
        ax.axvline(0, color=c.ink, linewidth=1)
        ax.set(xlabel="seconds too early (−) or too late (+)", ylabel="queries")
        ax.legend(frameon=False)

    return _render("boundaries", alt, draw)


def plot_training(history: Sequence[Mapping[str, float]], epoch: int) -> list[Picture]:
    """The losses and the validation metrics by epoch, with a line at the checkpoint's `epoch`."""
    losses = {k.removeprefix("loss/"): k for k in history[-1] if k.startswith("loss/")}
    metrics = {metric_label(k): k for k in ("r1_at_0.5", "r1_at_0.7", "miou") if k in history[-1]}
    pictures = []
    for name, lines, label in (
        ("losses", losses, "loss, mean of the epoch"),
        ("validation", metrics, "validation, percent"),
    ):

        def draw(ax: Axes, c: Colours, lines: dict[str, str] = lines, label: str = label) -> None:
            for i, (title, key) in enumerate(lines.items()):
                rows = [row for row in history if key in row]
                colour = (c.model, c.constant, c.truth, c.soft)[i % 4]
                ax.plot(
                    [row["epoch"] for row in rows],
                    [row[key] for row in rows],
                    ("-", "--", ":", "-.")[(i // 4 + i) % 4],
                    marker=".",
                    color=colour,
                    label=title,
                )
            ax.axvline(epoch, color=c.soft, linewidth=1)
            ax.set(xlabel="epoch (the line is this checkpoint's)", ylabel=label)
            ax.set_ylim(bottom=0)
            ax.legend(frameon=False, ncols=2)

        ends = ", ".join(
            f"{title} {history[0].get(key, 0):.2f} to {history[-1][key]:.2f}" for title, key in lines.items()
        )
        alt = f"Curves of the {label}, by epoch, from the first validation to the last: {ends}."
        pictures.append(_render(name, alt, draw))
    return pictures


def plot_timeline(name: str, case: Case) -> Picture:
    """The membership curve over the video's time, with the true spans and the answer below it."""
    min_width = 0.005 * case.duration  # seconds; enough to be visible

    def draw(ax: Axes, c: Colours) -> None:
        if case.membership:
            ax.stairs(case.membership, case.edges, fill=True, color=c.soft, alpha=0.35)
            ax.stairs(case.membership, case.edges, color=c.soft, linewidth=1.2, baseline=None)
        ax.axhline(0, color=c.line, linewidth=1)
        rows = [(-0.3, case.truth, c.truth), (-0.68, [case.predicted] if case.predicted else [], c.model)]
        for y, spans, colour in rows:
            bars = [(start, max(end - start, min_width)) for start, end in spans]
            ax.broken_barh(bars, (y - 0.13, 0.26), color=colour)
        ax.set(xlim=(0, case.duration), ylim=(-0.9, 1.05), xlabel="seconds")
        ax.set_yticks([-0.68, -0.3, 0, 1], ["answer", "truth", "0", "1"])
        ax.grid(False)
        ax.spines["bottom"].set_visible(False)

    truth = ", ".join(map(format_span, case.truth))
    answer = format_span(case.predicted) if case.predicted else "none"
    alt = f"Timeline of {case.duration:.1f} s. Truth {truth}; answer {answer}; IoU {case.iou:.2f}."
    if case.membership:
        top = int(np.argmax(case.membership))
        alt += f" Membership is highest, {case.membership[top]:.2f}, at {case.edges[top]:.1f} s."
    return _render(name, alt, draw, height=1.7)


def format_span(span: tuple[float, float]) -> str:
    """(1.04, 4.4) -> 1.0–4.4 s"""
    return f"{span[0]:.1f}–{span[1]:.1f} s"


def _colour(c: Colours, system: str) -> str:
    return {"model": c.model, "constant": c.constant, "shuffled": c.soft}[system]


def _render(name: str, alt: str, draw: Callable[[Axes, Colours], None], height: float = 3.4) -> Picture:
    images = {}
    for theme, c in THEMES.items():
        style: Any = {
            "font.size": 11,
            "text.color": c.ink,
            "axes.labelcolor": c.ink,
            "axes.edgecolor": c.soft,
            "axes.facecolor": c.card,
            "axes.grid": True,
            "axes.axisbelow": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "grid.color": c.line,
            "xtick.color": c.ink,
            "ytick.color": c.ink,
        }
        with rc_context(style):
            figure = Figure(figsize=(WIDTH, height), layout="constrained")
            draw(figure.add_subplot(), c)
            stream = BytesIO()
            figure.savefig(stream, format="png", dpi=DPI, facecolor=c.card, metadata={"Software": None})
        images[theme] = stream.getvalue()
    return Picture(name, alt, images["light"], images["dark"])
