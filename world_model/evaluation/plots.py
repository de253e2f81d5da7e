"""Plots of an evaluation as PNG files; Matplotlib comes with the extra `eval`."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from world_model.evaluation.summary import TARGET_GAINS, TARGET_SHARPNESS
from world_model.types import ReverieError

INCHES = (6.4, 3.6)
DPI = 110
COLOURS = ("#1769aa", "#d1495b", "#2e933c", "#8d6a9f", "#b07d12")


@dataclass(frozen=True)
class Curve:
    """A line over ticks; `low` and `high`, where given, are its 95 % interval."""

    label: str
    ticks: Sequence[float]
    mean: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


def have_matplotlib() -> bool:
    """Whether plots can be drawn."""
    return importlib.util.find_spec("matplotlib") is not None


def draw_plots(result: Mapping[str, Any], out: Path) -> list[Path]:
    """All plots of an evaluation that were measured. Raises ReverieError when Matplotlib is missing."""
    drawn = []
    titles = {"rollout": "moving windows", "rollout_all": "all windows", "rollout_long": "long windows"}
    parts = {title: result[key]["ticks"] for key, title in titles.items() if key in result}
    if parts:
        gains = [_of(label, part, "gain") for label, part in parts.items()]
        marks = {float(k): v for k, v in TARGET_GAINS.items()}
        drawn.append(draw(out / "plot_gain.png", gains, "dB above copy-seed", zero=True, marks=marks))
        sharp = [_of(label, part, "laplacian_ratio") for label, part in parts.items()]
        drawn.append(
            draw(out / "plot_sharpness.png", sharp, "Laplacian energy, dream / real", band=TARGET_SHARPNESS)
        )
    if "probe" in result:
        drawn.append(_path(out / "plot_path.png", result["probe"]))
    if "recall" in result:
        drawn.append(_recall(out / "plot_memory.png", result["recall"]["ticks"]))
    return drawn


def draw_differences(path: Path, parts: Mapping[str, Mapping[str, Any]], label: str) -> Path:
    """Paired differences by tick, one curve a part, with their intervals."""
    curves = [_curve(name, [(float(k), v) for k, v in part.items()]) for name, part in parts.items()]
    return draw(path, curves, label, zero=True)


def draw(
    path: Path,
    curves: Sequence[Curve],
    ylabel: str,
    xlabel: str = "ticks of 40 ms",
    zero: bool = False,
    band: tuple[float, float] | None = None,
    marks: Mapping[float, float] | None = None,
) -> Path:
    """Curves over a logarithmic axis of ticks. `band`: a range that is aimed at; `marks`: targets."""
    figure, axes = _figure()
    if band is not None:
        axes.axhspan(*band, color="#2e933c", alpha=0.12, lw=0)
    if zero:
        axes.axhline(0, color="0.4", lw=0.8)
    for colour, curve in zip(COLOURS * 4, curves, strict=False):
        axes.plot(curve.ticks, curve.mean, "o-", ms=3, color=colour, label=curve.label)
        if len(curve.low):
            axes.fill_between(curve.ticks, curve.low, curve.high, color=colour, alpha=0.15, lw=0)
    if marks:
        axes.plot(list(marks), list(marks.values()), "_", ms=16, mew=2, color="0.2", label="target")
    _finish(axes, xlabel, ylabel)
    figure.savefig(path, dpi=DPI)
    return path


def _of(label: str, ticks: Mapping[str, Any], measure: str) -> Curve:
    return _curve(label, [(float(k), v[measure]) for k, v in ticks.items() if v[measure]])


def _curve(label: str, rows: Sequence[tuple[float, Mapping[str, Any]]]) -> Curve:
    """Means by tick; with their intervals where every one has one."""
    ticks, means = [k for k, _ in rows], [v["mean"] for _, v in rows]
    if any(v["low"] is None for _, v in rows):
        return Curve(label, ticks, means)
    return Curve(label, ticks, means, [v["low"] for _, v in rows], [v["high"] for _, v in rows])


def _path(path: Path, probe: Mapping[str, Any]) -> Path:
    ticks = [float(k) for k in probe]
    curves = [
        Curve(f"{who}, {unit}", ticks, [pick(v)[measure]["median"] for v in probe.values()])
        for measure, unit in (("distance", "map units"), ("degrees", "degrees"))
        for who, pick in (("dream", lambda v: v), ("probe on real frames", lambda v: v["real"]))
    ]
    return draw(path, curves, "median error of the imagined path")


def _recall(path: Path, ticks: Mapping[str, Any]) -> Path:
    order = sorted(ticks.values(), key=lambda v: v["distance"]["mean"])
    by_distance = {str(v["distance"]["mean"]): v for v in order}
    curves = [_of("dream", by_distance, "psnr"), _of("copy-seed", by_distance, "copy_seed")]
    return draw(path, curves, "PSNR to the real frame, dB", "ticks since the view was seen")


def _figure() -> tuple[Any, Any]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as err:
        raise ReverieError('Matplotlib is not installed; run pip install "reverie[eval]"') from err
    figure = Figure(figsize=INCHES, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _finish(axes: Any, xlabel: str, ylabel: str) -> None:
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    low, high = axes.get_xlim()
    ticks = [k for k in (0, 1, 4, 16, 64, 256, 1000) if low <= k <= high]
    axes.set_xticks(ticks, [str(k) for k in ticks])
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
