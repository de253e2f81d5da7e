"""A whole evaluation: `eval.json`, `eval.md`, pictures, plots and `report.html`.

`eval.json` is deterministic by seed and free of timings and of the machine; speed is `main.py bench`'s.
Sizes of a plan: plan.py. What is measured: measure.py.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from world_model.evaluation.html import report_html
from world_model.evaluation.measure import MEASURES, Setting
from world_model.evaluation.plan import FULL, QUICK, Plan, check_protocols, with_asked
from world_model.evaluation.plots import draw_plots, have_matplotlib
from world_model.evaluation.protocol import Dreamer
from world_model.evaluation.sheets import have_pillow
from world_model.evaluation.summary import summary_markdown
from world_model.evaluation.walks import EndedError
from world_model.evaluation.windows import CONTEXT, HeldOut, held_out
from world_model.files import reason_of, write_atomic
from world_model.types import DataError

SCHEMA = 3
INSTALL = 'plots and moving pictures need more packages: pip install "reverie[eval]"'
PICTURES = ("strip_*.png", "film_*.gif", "plot_*.png", "windows.???", "ends.???", "sounds.png")

Say = Callable[[str], None]


def evaluate(
    dreamer: Dreamer,
    root: Path,
    quick: bool,
    out: Path,
    source: str | None = None,
    plan: Plan | None = None,
    progress: Say = lambda _: None,
    protocols: Sequence[str] = (),
    machine: Mapping[str, Any] | None = None,
    weights: str | None = None,
) -> dict[str, Any]:
    """Measures a dreamer on the held-out split of `root` and writes the report into `out`.

    Files: eval.json, eval.md, report.html, strips, moving pictures and sheets (`sheets`), plots (`plots`).
    `source` (a name for `make_source`) adds what only the real game can judge: full turns, walks there
    and back, and the collapse rule on the real game under the same actions. `protocols` (names of
    `plan.PROTOCOLS`) measures these alone. `progress` is told each part's seconds; `machine` is shown in
    the report. `weights`: SHA-256 of the world's weights, as its world.json names it, so that the figures say
    of what they are. Returns what `eval.json` holds. Raises DataError without held-out episodes or when a
    protocol that was asked for cannot be measured on them, WorldError for a dreamer that returns broken
    frames, SourceError when the source is not installed, ValueError for an unknown protocol.
    """
    names = check_protocols(protocols)
    plan = plan or (QUICK if quick else FULL)
    plan = with_asked(plan, protocols)
    data = held_out(root)
    fresh_folder(out)
    setting = Setting(dreamer, data, root, plan, out, source)
    result = _head(dreamer, data, plan, weights)
    for name in names:
        began = perf_counter()
        try:
            found = MEASURES[name](setting)
        except EndedError as err:  # the real game as a dreamer: what was begun is void, the rest is not
            found = {"omitted": {name: str(err)}}
        omitted = found.pop("omitted", {})
        if not found and name in protocols:
            omitted = omitted or {name: f"there is nothing of it in {result['data']['source']}"}
            raise DataError("; ".join(f"{what} cannot be measured: {why}" for what, why in omitted.items()))
        result["omitted"] = result.get("omitted", {}) | omitted
        result |= found
        progress(f"{name:<16}{perf_counter() - began:8.1f} s")
    if not result["omitted"]:
        del result["omitted"]
    write_report(result, out, machine, progress)
    return result


def write_report(
    result: dict[str, Any],
    out: Path,
    machine: Mapping[str, Any] | None = None,
    progress: Say = lambda _: None,
) -> None:
    """Writes the files of a result; plots only where Matplotlib is installed, which `progress` is told."""
    write_atomic(out / "eval.json", [compact_json(result).encode()])
    write_atomic(out / "eval.md", [summary_markdown(result).encode()])
    plots = draw_plots(result, out) if have_matplotlib() else []
    hint = "" if have_matplotlib() and have_pillow() else INSTALL
    if hint:
        progress(hint)
    page = report_html(result, out, plots, machine or {}, hint)
    write_atomic(out / "report.html", [page.encode()])


def compact_json(result: Mapping[str, Any]) -> str:
    """JSON with lists of numbers on one line. Raises DataError for a NaN: it never becomes a score."""
    try:
        text = json.dumps(result, indent=1, allow_nan=False)
    except ValueError as err:
        raise DataError("the evaluation came to a NaN; nothing was written") from err
    return re.sub(r"\[\n[^\[\]{}]*\]", lambda m: re.sub(r"\n\s*", "", m.group()), text) + "\n"


def fresh_folder(out: Path) -> None:
    """Makes the folder, without pictures of an earlier evaluation. Raises DataError with the remedy."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        for pattern in PICTURES:
            for old in out.glob(pattern):
                old.unlink()
    except OSError as err:
        raise DataError(f"cannot write {out}: {reason_of(err)}; choose another folder") from err


def data_digest(data: HeldOut) -> str:
    """SHA-256 over every held-out episode: name, header, actions and last picture, which is where all of them
    led. Episodes of other settings of a game, or of another version of it, have another."""
    digest = hashlib.sha256()
    for name, episode in zip(data.names, data.episodes, strict=True):
        digest.update(json.dumps([name, episode.header], sort_keys=True).encode())
        digest.update(np.asarray(episode.actions, "<i2").tobytes())
        digest.update(np.asarray(episode.frames[-1]).tobytes())
    return digest.hexdigest()


def _head(dreamer: Dreamer, data: HeldOut, plan: Plan, weights: str | None) -> dict[str, Any]:
    first = data.episodes[0].header
    engine = getattr(dreamer, "engine", None)
    world = {} if engine is None else {"weights_sha256": weights, "head_steps": engine.head_steps}
    return {
        "schema": SCHEMA,
        "dreamer": dreamer.name,
        **world,
        "plan": plan.to_json(),
        "data": {
            "source": first.get("source"),
            "sha256": data_digest(data),
            "episodes": list(data.names),
            "ticks": sum(map(len, data.episodes)),
            "context": CONTEXT,
            "fps": first.get("fps"),
        },
    }
