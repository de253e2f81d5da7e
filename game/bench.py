"""How fast a world ticks on this machine: no window, no sound, a fixed number of ticks."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from game.clock import Clock, FreeClock
from game.machine import describe_machine, rss_mb
from game.players import Wanderer
from world_model.types import TICK_MS, DataError

SECTIONS = ("carry", "imagine", "trunk", "head", "sound", "decode", "total")
FIRST_RSS = 100


def bench(
    load: Callable[[], Any],
    ticks: int = 500,
    warmup: int = 50,
    paced: bool = False,
    seed: int = 0,
    now: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[str, Any]:
    """Loads a world with `load()`, steps it with a wanderer's actions, and returns the result as JSON.

    `warmup` ticks are stepped, but not counted. "total" is measured around `step`; the other sections are
    what the world reports. Unpaced, a tick follows a tick; paced, at 25 a second, as in play.
    """
    if ticks < 1 or warmup < 0:
        raise ValueError(f"{ticks} ticks after {warmup} of warm-up: at least one tick is needed")
    began = now()
    world = load()
    loaded = now()
    image = world.reset(seed=seed).image
    image = world.step(0).image
    first_picture = now() - began
    clock = (Clock if paced else FreeClock)(time=now, sleep=sleep)
    player = Wanderer(world.actions, seed)
    ms: dict[str, list[float]] = {name: [] for name in SECTIONS}
    rss = {}
    start = now()
    for tick in range(-warmup, ticks):
        if tick == 0:
            start = now()
        action = player.act(0, image)
        clock.wait()
        before = now()
        frame = world.step(action)
        took = 1e3 * (now() - before)
        image = frame.image
        if frame.info.over:  # a dream that is over stands still, which costs nothing
            seed, ended = seed + 1, now()
            image = world.reset(seed=seed).image
            start += now() - ended
            clock.rest()
        if tick >= 0:
            for name in SECTIONS[:-1]:
                if name in frame.info.ms:
                    ms[name].append(frame.info.ms[name])
            ms["total"].append(took)
        if tick + 1 in (FIRST_RSS, ticks):
            rss[str(tick + 1)] = round(rss_mb(), 1)
    seconds = now() - start
    total = np.array(ms["total"])
    return {
        "benchmark": "tick",
        "world": world.info.name,
        "weights_sha256": world.info.weights_sha256,
        "backend": world.info.backend,
        "mode": "paced" if paced else "unpaced",
        "ticks": ticks,
        "warmup": warmup,
        "ms": {name: _percentiles(values) for name, values in ms.items() if values},
        "ticks_per_second": round(ticks / seconds, 2) if seconds > 0 else None,
        "over_40_ms": int((total > TICK_MS).sum()),
        "load_s": round(loaded - began, 3),
        "first_picture_s": round(first_picture, 3),
        "rss_mb": rss,
        "machine": describe_machine(),
    }


def _percentiles(values: list[float]) -> dict[str, float]:
    p50, p95, p99 = np.percentile(values, (50, 95, 99))
    numbers = {"p50": p50, "p95": p95, "p99": p99, "mean": np.mean(values), "max": max(values)}
    return {name: round(float(value), 3) for name, value in numbers.items()}


def table(result: dict[str, Any], other: dict[str, Any] | None = None) -> str:
    """The result for people; with `other` (an earlier result) the ratio of now to then beside it."""
    machine = result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines = [
        f"{machine['cpu']}, {machine['usable_cores']} of {machine['cores']} cores, {machine['system']}",
        versions,
        f"world {result['world']} ({result['backend']}), {result['ticks']} {result['mode']} ticks "
        f"after {result['warmup']} of warm-up",
        "",
        f"{'ms a tick':<12}{'p50':>9}{'p95':>9}{'p99':>9}{'max':>9}"
        + ("   p50 ratio  p99 ratio" if other else ""),
    ]
    for name, p in result["ms"].items():
        line = f"{name:<12}{p['p50']:9.2f}{p['p95']:9.2f}{p['p99']:9.2f}{p['max']:9.2f}"
        then = (other or {}).get("ms", {}).get(name)
        if then:
            line += f"{_ratio(p['p50'], then['p50']):>12}{_ratio(p['p99'], then['p99']):>11}"
        lines.append(line)
    rss = ", ".join(f"{value:.0f} MB after {tick} ticks" for tick, value in result["rss_mb"].items())
    lines += [
        "",
        f"{result['ticks_per_second']} ticks a second, {result['over_40_ms']} over 40 ms",
        f"first picture after {result['first_picture_s']:.2f} s (loading {result['load_s']:.2f} s)",
        f"memory: {rss}",
    ]
    return "\n".join(lines)


def _ratio(now: float, then: float) -> str:
    return f"{now / then:.2f} x" if then > 0 else "-"


def read_result(path: Path, paced: bool) -> dict[str, Any]:
    """The JSON of an earlier run: a file of it alone, or of the whole output, whose last line it is.

    Raises DataError for anything else, and where one run is paced and the other is not.
    """
    try:
        text = path.read_text(encoding="utf-8").strip()
        data = json.loads(text if text.startswith("{") else text.splitlines()[-1])
        numbers = {name: {k: float(p[k]) for k in ("p50", "p99")} for name, p in data["ms"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as err:
        raise DataError(f"{path}: no result of `bench` can be read there ({err})") from err
    mode = "paced" if paced else "unpaced"
    if data.get("mode") != mode:
        raise DataError(f"{path}: that run was {data.get('mode')}, this one is {mode}: they do not compare")
    return {"mode": mode, "ms": numbers}
