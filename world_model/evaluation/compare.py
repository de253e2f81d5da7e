"""Two dreamers on the same windows: which is better, and by how much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from world_model.evaluation.protocol import Clip, Dreamer
from world_model.evaluation.rollout import rollout
from world_model.evaluation.stats import mean_interval
from world_model.types import DataError

PARTS = ("rollout", "rollout_all", "rollout_long")


def compare(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    """Paired comparison of two `eval.json` documents, window by window.

    For every part and tick that both hold: mean of PSNR_a - PSNR_b in dB with its bootstrap interval over
    episodes, the share of windows in which a is ahead, and `better`: "a" or "b" where the interval leaves
    out zero, else "undecided". Raises DataError when the windows are not the same.
    """
    shared = [part for part in PARTS if part in a and part in b]
    if not shared:
        raise DataError("the two evaluations share no rollouts; evaluate both with the same plan")
    return {part: paired(a[part], b[part]) for part in shared}


def paired(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    """`compare` for two results of `rollout.rollout`."""
    if [list(c) for c in a["clips"]] != [list(c) for c in b["clips"]] or a["context"] != b["context"]:
        raise DataError("the two evaluations used different windows; use the same data set, plan and seed")
    names = [name for name, _ in a["clips"]]
    result = {}
    for tick in (k for k in a["per_clip"] if k in b["per_clip"]):
        ahead = np.array(a["per_clip"][tick]["psnr"]) - np.array(b["per_clip"][tick]["psnr"])
        summary = mean_interval(ahead, names)
        better = "a" if summary["low"] > 0 else "b" if summary["high"] < 0 else "undecided"
        result[tick] = summary | {"a_ahead": round(float((ahead > 0).mean()), 4), "better": better}
    return result


def ablate(
    whole: Dreamer, without: Mapping[str, Dreamer], clips: Sequence[Clip], batch: int = 16
) -> dict[str, Any]:
    """What a part is worth: the whole dreamer minus the same without it, paired on `clips`.

    `without` names each ablation ("keyframes", "state", "window") and gives a dreamer that lacks it.
    """
    full = rollout(whole, clips, batch=batch)
    return {name: paired(full, rollout(other, clips, batch=batch)) for name, other in without.items()}


def comparison_markdown(result: Mapping[str, Any], a: str, b: str) -> str:
    """A comparison as Markdown, one table a part."""
    lines = [f"PSNR of {a} minus {b}, dB, paired windows, 95 % bootstrap over episodes."]
    for part, ticks in result.items():
        lines += ["", f"**{part}**", "", f"| Tick | difference | {a} ahead | better |", "|---|---|---|---|"]
        for k, v in ticks.items():
            better = {"a": a, "b": b}.get(v["better"], v["better"])
            span = f"{v['mean']:+.2f} ({v['low']:+.2f} to {v['high']:+.2f})"
            lines.append(f"| {k} | {span} | {100 * v['a_ahead']:.0f} % | {better} |")
    return "\n".join(lines) + "\n"
