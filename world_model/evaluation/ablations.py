"""What each part of a world's memory is worth: the whole world against itself without the part."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

from world_model.batch_dream import BatchDream
from world_model.data.sources import make_source
from world_model.evaluation.compare import PARTS as COMPARED
from world_model.evaluation.compare import paired
from world_model.evaluation.html import figure, machine_table, page
from world_model.evaluation.measure import reach
from world_model.evaluation.plan import Plan
from world_model.evaluation.plots import draw_differences, have_matplotlib
from world_model.evaluation.protocol import Clip, Dreamer
from world_model.evaluation.report import INSTALL, SCHEMA, compact_json, fresh_folder
from world_model.evaluation.revisit import recall
from world_model.evaluation.rollout import rollout
from world_model.evaluation.tables import Table, as_html, markdown, signed
from world_model.evaluation.walks import can_mirror, remembering, there_and_back
from world_model.evaluation.windows import held_out, windows
from world_model.evaluation.worlds import PARTS, AblatedDream, CheckedDream
from world_model.files import write_atomic

FEWEST_WALKS = 2
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
) -> dict[str, Any]:
    """Measures every ablation of `worlds.PARTS` on the same clips; writes ablations.json, .md and .html.

    Clips: `plan.ablation_windows` moving windows and, with a `source` whose actions can be undone, walks
    whose way out was seen (`revisit.recall`). Errors as `report.evaluate`.
    """
    data = held_out(root)
    fresh_folder(out)
    clips = windows(
        data, reach(data, plan.ablation_ticks), plan.ablation_windows, moving=True, seed=plan.seed
    )
    walks = _walks(source, plan) if source is not None else []
    dreamers: dict[str, Dreamer] = {"whole": CheckedDream(world.engine, world.name, world.seed)}
    dreamers |= {part: AblatedDream(world.engine, part, world.name, world.seed) for part in PARTS}
    found = {}
    for name, dreamer in dreamers.items():
        began = perf_counter()
        found[name] = {"rollout": rollout(dreamer, clips, batch=plan.batch)}
        if walks:
            found[name]["recall"] = recall(dreamer, walks)
        progress(f"{name:<20}{perf_counter() - began:8.1f} s")
    whole = found.pop("whole")
    result = {
        "schema": SCHEMA,
        "dreamer": world.name,
        "plan": plan.to_json(),
        "whole": whole,
        "without": {name: {p: paired(whole[p], own[p]) for p in whole} for name, own in found.items()},
    }
    _write(result, out, machine or {})
    return result


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
    return [*tables, Table("", (), (), NOTE)]


def _walks(source: str, plan: Plan) -> list[Clip]:
    game = make_source(source)
    try:
        if not can_mirror([a.name for a in game.actions]):
            return []
        count = max(FEWEST_WALKS, plan.walks // 2)
        return remembering(there_and_back(game, count, plan.walk_ticks, seed=plan.seed), game.phases)
    finally:
        game.close()


def _write(result: dict[str, Any], out: Path, machine: Mapping[str, Any]) -> None:
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
