"""Two dreamers on the same windows: which is better, and by how much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from world_model.evaluation.protocol import Clip, Dreamer
from world_model.evaluation.rollout import TICKS, rollout
from world_model.evaluation.stats import mean_interval
from world_model.evaluation.tables import Table, markdown, share, signed
from world_model.types import DataError

PARTS = {
    "rollout": "moving windows",
    "rollout_all": "all windows",
    "rollout_long": "long windows",
    "recall": "back along what was seen",
    "retrace": "there and back",
}
"""Parts of an evaluation that hold a PSNR for each clip and tick."""

DECIDING = (
    "one tick ahead",
    *(f"PSNR, tick {k}" for k in (8, 32, 128)),
    *(f"sharpness, tick {k}" for k in (32, 128)),
    "collapse",
    "flashes of shots",
    "bangs of shots",
    "sound",
)
FIGHT = {"flashes of shots": ("flash_f1", 1), "bangs of shots": ("bang_f1", 1), "sound": ("log_mel", -1)}
"""Figures of a fight: what `events.per_clip` calls them, and whether more of it is better."""

Document = Mapping[str, Any]
Array = NDArray[np.float64]


def compare(a: Document, b: Document) -> dict[str, Any]:
    """Paired comparison of two `eval.json` documents.

    `figures`: each of `DECIDING` that both hold, as the mean advantage of a over b (positive: a is
    better) with its bootstrap interval over episodes, the share of clips in which a is ahead, and
    `better`: "a" or "b" where the interval leaves out zero, else "undecided". `verdict`: the one that is
    better in some figure while the other is better in none; else "undecided". `parts`: the difference of
    PSNR at every tick. Raises DataError when the data or the windows are not the same or nothing is shared.
    """
    if a.get("schema") != b.get("schema"):
        raise DataError("the two evaluations were made by different versions; evaluate both again")
    _check_data(a.get("data", {}), b.get("data", {}))
    shared = [part for part in PARTS if part in a and part in b]
    if not shared and not ("one_tick" in a and "one_tick" in b):
        raise DataError("the two evaluations share no rollouts; evaluate both with the same protocols")
    parts = {part: paired(a[part], b[part]) for part in shared}
    figures = _figures(a, b, parts)
    return {"figures": figures, "verdict": _verdict(figures), "parts": parts}


def paired(a: Document, b: Document) -> dict[str, Any]:
    """PSNR of a minus that of b, clip by clip, for two results of `rollout`, `recall` or `retrace`."""
    names = _same_clips(a, b)
    return {
        tick: advantage(_psnr(a, tick) - _psnr(b, tick), names)
        for tick in a["per_clip"]
        if tick in b["per_clip"]
    }


def advantage(ahead: Array, names: Sequence[str]) -> dict[str, Any]:
    """A mean difference with its interval, who is ahead how often, and who is better."""
    summary = mean_interval(ahead, names)
    known = summary["low"] is not None  # one episode alone decides nothing
    better = "a" if known and summary["low"] > 0 else "b" if known and summary["high"] < 0 else "undecided"
    return summary | {"a_ahead": round(float((ahead > 0).mean()), 4), "better": better}


def ablate(
    whole: Dreamer,
    without: Mapping[str, Dreamer],
    clips: Sequence[Clip],
    batch: int = 16,
    ticks: Sequence[int] = TICKS,
) -> dict[str, Any]:
    """What a part is worth: the whole dreamer minus the same without it, paired on `clips`.

    `without` names each ablation and gives a dreamer that lacks the part.
    """
    full = rollout(whole, clips, ticks, batch)
    return {name: paired(full, rollout(other, clips, ticks, batch)) for name, other in without.items()}


def comparison_tables(result: Document, a: str, b: str) -> list[Table]:
    """A comparison as tables: the deciding figures first, then every tick."""
    names = {"a": a, "b": b}
    winner = names.get(result["verdict"])
    verdict = f"{winner} is better." if winner else "Undecided: neither is better in what decides."
    note = f"{verdict} Positive figures are in favour of {a}; paired clips, 95 % bootstrap over episodes."
    head = ("", f"advantage of {a}", f"{a} ahead", "better")
    tables = [Table("Verdict", head, tuple(_row(k, v, names) for k, v in result["figures"].items()), note)]
    for part, ticks in result["parts"].items():
        rows = tuple(_row(k, v, names) for k, v in ticks.items())
        tables.append(Table(f"PSNR, {PARTS[part]}, dB", ("Tick", *head[1:]), rows))
    return tables


def comparison_markdown(result: Document, a: str, b: str) -> str:
    """A comparison as Markdown."""
    return markdown(comparison_tables(result, a, b))


def _figures(a: Document, b: Document, parts: Document) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "one_tick" in a and "one_tick" in b:
        names = _same_clips(a["one_tick"], b["one_tick"])
        if a["one_tick"]["all"]["ticks"] == b["one_tick"]["all"]["ticks"]:
            own, other = (np.array(d["one_tick"]["per_clip"]) for d in (a, b))
            found["one tick ahead"] = advantage(own - other, names)
    found |= {f"PSNR, tick {k}": v for k, v in parts.get("rollout", {}).items()}
    for tick in parts.get("rollout", {}):
        names = _same_clips(a["rollout"], b["rollout"])
        own, other = (_blur(d["rollout"]["per_clip"][tick]["sharpness"]) for d in (a, b))
        found[f"sharpness, tick {tick}"] = advantage(other - own, names)
    if "collapse" in a and "collapse" in b and a["collapse"]["ticks"] == b["collapse"]["ticks"]:
        names = _same_clips(a["collapse"], b["collapse"])
        own, other = (np.array([bool(v) for v in d["collapse"]["verdicts"]], float) for d in (a, b))
        found["collapse"] = advantage(other - own, names)
    if "events" in a and "events" in b:
        found |= _fight(a["events"], b["events"])
    return {name: found[name] for name in DECIDING if name in found}


def _fight(a: Document, b: Document) -> dict[str, Any]:
    """Over the clips in which both have something to measure."""
    names, found = _same_clips(a, b), {}
    for figure, (key, sign) in FIGHT.items():
        rows = zip(a["per_clip"].get(key, []), b["per_clip"].get(key, []), names, strict=False)
        kept = [(sign * (x - y), name) for x, y, name in rows if x is not None and y is not None]
        if kept:
            found[figure] = advantage(np.array([d for d, _ in kept]), [name for _, name in kept])
    return found


def _verdict(figures: Document) -> str:
    winners = {v["better"] for v in figures.values()} - {"undecided"}
    return winners.pop() if len(winners) == 1 else "undecided"


def _check_data(a: Document, b: Document) -> None:
    """Raises DataError when the held-out episodes, or what is shown of them, are not the same: names and
    seeds alone do not tell."""
    if a.get("sha256") != b.get("sha256"):
        raise DataError(
            f"the two evaluations are of different data ({a.get('source')} and {b.get('source')}): the "
            "held-out episodes are not the same; evaluate both on one data set"
        )
    if a.get("context") != b.get("context"):
        raise DataError("the two evaluations showed contexts of different length; evaluate both again")


def _same_clips(a: Document, b: Document) -> list[str]:
    """The clips' episodes. Raises DataError when the two were measured on different ones."""
    clips = [[list(c) for c in d["clips"]] for d in (a, b)]
    if clips[0] != clips[1] or a.get("context") != b.get("context"):
        raise DataError("the two evaluations used different windows; use the same data set, plan and seed")
    return [name for name, _ in a["clips"]]


def _psnr(part: Document, tick: str) -> Array:
    return np.array(part["per_clip"][tick]["psnr"], np.float64)


def _blur(sharpness: Sequence[float]) -> Array:
    """How far from the right sharpness, in octaves; nothing at all counts as ten."""
    return np.abs(np.log2(np.clip(np.asarray(sharpness, np.float64), 2.0**-10, 2.0**10)))


def _row(name: str, value: Document, names: Mapping[str, str]) -> tuple[str, ...]:
    better = names.get(value["better"], value["better"])
    return name, signed(dict(value)), share(value["a_ahead"]), better
