"""What each part of a world's memory is worth: the whole world against itself without the part."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from world_model.batch_dream import BatchDream
from world_model.data.mazes.layout import is_held_out
from world_model.data.mazes.source import NAMES as MAZES
from world_model.data.sources import make_source
from world_model.evaluation.compare import PARTS as COMPARED
from world_model.evaluation.compare import advantage, paired
from world_model.evaluation.html import figure, machine_table, page
from world_model.evaluation.measure import reach
from world_model.evaluation.plan import Plan
from world_model.evaluation.plots import draw_differences, have_matplotlib
from world_model.evaluation.protocol import Clip, Dreamer
from world_model.evaluation.report import INSTALL, SCHEMA, compact_json, fresh_folder
from world_model.evaluation.revisit import recall, turn
from world_model.evaluation.rollout import rollout
from world_model.evaluation.stats import mean_interval
from world_model.evaluation.tables import Table, as_html, interval, markdown, signed
from world_model.evaluation.walks import can_mirror, remembering, there_and_back, turn_clips
from world_model.evaluation.windows import held_out, windows
from world_model.evaluation.worlds import PARTS, AblatedDream, Begun, CheckedDream
from world_model.files import write_atomic

Values = NDArray[np.float64]
FAR = (64, 400)
"""Ticks since a view was last seen between which a memory shows its worth: the window is long over."""
SPANS = ((1, 63), (64, 127), (128, 255), (256, 400), (401, 1000))
"""Such distances, by which PSNR is told."""
NOTE = (
    "PSNR of the whole world minus that of the world without the part, dB, paired clips, 95 % bootstrap over "
    "episodes: positive where the part helps. no-memory: neither keyframes nor state nor window; the place "
    "that a world keeps for itself stays."
)


def ablations(
    world: BatchDream,
    root: Path,
    out: Path,
    plan: Plan,
    source: str | None = None,
    progress: Callable[[str], None] = lambda _: None,
    machine: Mapping[str, Any] | None = None,
    beside: Mapping[str, BatchDream] | None = None,
) -> dict[str, Any]:
    """Measures every ablation of `worlds.PARTS` on the same clips; writes ablations.json, .md and .html.

    Clips: `plan.ablation_windows` moving windows and, with a `source` whose actions can be undone, full turns
    and walks whose way out was seen (`revisit.recall`). `beside`: other worlds to measure on them, by name.
    Errors as `report.evaluate`.
    """
    data = held_out(root)
    fresh_folder(out)
    clips = windows(
        data, reach(data, plan.ablation_ticks), plan.ablation_windows, moving=True, seed=plan.seed
    )
    walks, turns = _played(source, plan) if source is not None else ([], [])
    begun: Begun = {}
    dreamers: dict[str, Dreamer] = {"whole": CheckedDream(world.engine, world.name, world.seed)}
    dreamers |= {part: AblatedDream(world.engine, part, world.name, world.seed, begun) for part in PARTS}
    others = beside or {}
    dreamers |= {name: CheckedDream(w.engine, w.name, w.seed) for name, w in others.items()}
    found: dict[str, dict[str, Any]] = {}
    for name, dreamer in dreamers.items():
        began = perf_counter()
        found[name] = {"rollout": rollout(dreamer, clips, batch=plan.batch)}
        if walks:
            found[name]["recall"] = recall(dreamer, walks)
        if turns:
            found[name]["turn"] = turn(dreamer, turns, plan.batch)
        progress(f"{name:<20}{perf_counter() - began:8.1f} s")
    return _write(_result(world.name, plan, found, source), out, machine or {})


def _result(name: str, plan: Plan, found: Mapping[str, Any], source: str | None) -> dict[str, Any]:
    whole = {part: v for part, v in found["whole"].items() if part in COMPARED}
    others = {k: v for k, v in found.items() if k != "whole"}
    result: dict[str, Any] = {
        "schema": SCHEMA,
        "dreamer": name,
        "plan": plan.to_json(),
        "whole": whole,
        "without": {k: {p: paired(whole[p], own[p]) for p in whole} for k, own in others.items()},
    }
    if "turn" in found["whole"]:
        result["turn"] = {k: own["turn"] for k, own in found.items()}
    if "recall" in whole:
        result["remembered"] = {
            "spans": {f"{low} to {high}": _by_span(found, low, high) for low, high in SPANS},
            "worth": {k: worth(whole["recall"], own["recall"]) for k, own in others.items()},
        }
        if source in MAZES.values():
            result["remembered"]["textures"] = {
                label: _far(whole["recall"], unseen)
                for label, unseen in (("seen in training", False), ("combined anew", True))
            }
    return result


def worth(whole: Mapping[str, Any], without: Mapping[str, Any]) -> dict[str, Any] | None:
    """By how much `whole` is ahead, over all views of both `recall` results that were last seen `FAR` ago."""
    one, names = _views(whole, *FAR)
    other, _ = _views(without, *FAR)
    return advantage(one - other, names) if names else None


def _views(recalled: Mapping[str, Any], low: int, high: int, key: str = "psnr") -> tuple[Values, list[str]]:
    """A measure of all views that were last seen so many ticks ago, and their episodes."""
    rows = [
        (value, clip[0])
        for mark in recalled["per_clip"].values()
        for value, distance, clip in zip(mark[key], mark["distance"], recalled["clips"], strict=True)
        if low <= distance <= high
    ]
    return np.array([value for value, _ in rows]), [name for _, name in rows]


def _by_span(found: Mapping[str, Any], low: int, high: int) -> dict[str, Any]:
    """PSNR of each dreamer, and of copy-seed, for such views; empty where there are none."""
    columns = {name: _views(own["recall"], low, high) for name, own in found.items()}
    columns["copy-seed"] = _views(found["whole"]["recall"], low, high, "copy_seed")
    return {name: mean_interval(*column) for name, column in columns.items() if column[1]}


def _far(recalled: Mapping[str, Any], unseen: bool) -> dict[str, Any] | None:
    """PSNR of the views last seen `FAR` ago, in mazes whose textures training combined so, or never did."""
    psnr, names = _views(recalled, *FAR)
    kept = [i for i, name in enumerate(names) if is_held_out(int(name.rsplit(" ", 1)[-1])) == unseen]
    return mean_interval(psnr[kept], [names[i] for i in kept]) if kept else None


def ablation_tables(result: Mapping[str, Any]) -> list[Table]:
    """One table a part of the evaluation: a row for each tick, a column for each ablation."""
    names = list(result["without"])
    tables = []
    for part, whole in result["whole"].items():
        rows = tuple(
            (
                k,
                f"{v['psnr']['mean']:.2f}",
                *(signed(result["without"][name][part][k]) for name in names),
            )
            for k, v in whole["ticks"].items()
        )
        tables.append(Table(f"PSNR, {COMPARED[part]}, dB", ("Tick", "whole", *names), rows))
    return [*_memory_tables(result), *tables, Table("", (), (), NOTE)]


def _memory_tables(result: Mapping[str, Any]) -> list[Table]:
    """Views of long ago and full turns, where they were measured."""
    tables = []
    if "remembered" in result:
        own = result["remembered"]
        names = ["whole", *result["without"], "copy-seed"]
        rows = tuple((k, *(interval(v[n]) for n in names)) for k, v in own["spans"].items() if v)
        tables.append(Table("PSNR by ticks since the view was last seen, dB", ("Ticks", *names), rows))
        gains = tuple((k, signed(v, " dB")) for k, v in own["worth"].items() if v)
        title = f"What it loses where a view was last seen {FAR[0]} to {FAR[1]} ticks ago"
        tables.append(Table(title, ("Without", "PSNR lost"), gains))
        kinds = tuple((k, interval(v, " dB")) for k, v in own.get("textures", {}).items() if v)
        tables.append(Table("The same views, whole, by the map's textures", ("Textures", "PSNR"), kinds))
    if "turn" in result:
        rows = tuple((k, interval(v["psnr"], " dB")) for k, v in result["turn"].items())
        random = interval(result["turn"]["whole"]["random"], " dB")
        note = f"Against the real frame; a random frame: {random}."
        tables.append(Table("After 360 degrees", ("", "PSNR"), rows, note))
    return tables


def _played(source: str, plan: Plan) -> tuple[list[Clip], list[Clip]]:
    """Walks whose way out is seen, and full turns."""
    game = make_source(source, sound=False)
    try:
        walks: list[Clip] = []
        if can_mirror([a.name for a in game.actions]):
            found = there_and_back(game, plan.ablation_walks, plan.walk_ticks, seed=plan.seed)
            walks = remembering(found, game.phases)
        return walks, turn_clips(game, plan.ablation_turns, seed=plan.seed)
    finally:
        game.close()


def _write(result: dict[str, Any], out: Path, machine: Mapping[str, Any]) -> dict[str, Any]:
    tables = ablation_tables(result)
    title = f"{result['dreamer']}: what each part of the memory is worth"
    parts = [] if have_matplotlib() else [f"<p class=note>{INSTALL}</p>"]
    for part in result["whole"] if have_matplotlib() else ():
        curves = {name: own[part] for name, own in result["without"].items()}
        path = draw_differences(out / f"plot_without_{part}.png", curves, "dB lost without the part")
        parts.append(figure(path, COMPARED[part], "plot"))
    write_atomic(out / "ablations.json", [compact_json(result).encode()])
    write_atomic(out / "ablations.md", [markdown(tables).encode()])
    page_parts = [*parts, *map(as_html, [*tables, machine_table(machine)])]
    write_atomic(out / "ablations.html", [page(title, page_parts).encode()])
    return result
