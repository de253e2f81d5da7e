"""An evaluation as Markdown tables, with the targets beside the figures."""

from __future__ import annotations

from typing import Any

TARGET_GAINS = {"8": 5.0, "32": 4.0, "128": 3.0}
TARGET_ONE_TICK = 5.0
TARGET_SHARPNESS = (0.6, 1.4)
SHARPNESS_TICKS = ("32", "128", "500")
TARGET_OPPOSITE = 0.9


def summary_markdown(result: dict[str, Any]) -> str:
    """The figures of an `eval.json` as Markdown: targets first, then every tick that was measured."""
    data = result["data"]
    lines = [
        f"Held-out: {len(data['episodes'])} episodes, {data['ticks']} ticks of {data['source']}. "
        f"{data['context']} frames of context, then own predictions fed back under the recorded actions. "
        "Intervals are 95 % bootstraps over episodes.",
        "",
        "| Figure | Value | Target | |",
        "|---|---|---|---|",
        *(_row(*row) for row in _targets(result)),
    ]
    for key, title in (
        ("rollout", "Moving windows"),
        ("rollout_all", "All windows"),
        ("rollout_long", "Long"),
    ):
        if key in result:
            lines += ["", f"**{title}** ({len(result[key]['clips'])} windows)", "", *_table(result[key])]
    lines += _probe(result)
    return "\n".join(lines + _remarks(result)) + "\n"


def _targets(result: dict[str, Any]) -> list[tuple[str, str, str, bool | None]]:
    one = result["one_tick"]
    rows: list[tuple[str, str, str, bool | None]] = [
        (
            "one tick ahead, above persistence",
            _interval(one["gain"], " dB"),
            f">= {TARGET_ONE_TICK:g} dB",
            one["gain"]["mean"] >= TARGET_ONE_TICK,
        )
    ]
    ticks = result["rollout"]["ticks"]
    for k, target in TARGET_GAINS.items():
        if k in ticks:
            gain = ticks[k]["gain"]
            met = gain["mean"] >= target
            rows.append((f"above copy-seed, tick {k}", _interval(gain, " dB"), f">= {target:g} dB", met))
    low, high = TARGET_SHARPNESS
    everything = result["rollout_long"]["ticks"] | ticks
    for k in (k for k in SHARPNESS_TICKS if k in everything):
        ratio = everything[k]["laplacian_ratio"]
        rows.append(
            (f"sharpness, tick {k}", _interval(ratio), f"{low} to {high}", low <= ratio["mean"] <= high)
        )
    end = result["collapse"]
    name = f"collapsed of {end['rollouts']} rollouts, {end['ticks']} ticks"
    rows.append((name, str(end["collapsed"]), "0", end["collapsed"] == 0))
    return rows + _control_rows(result) + _turn_rows(result)


def _control_rows(result: dict[str, Any]) -> list[tuple[str, str, str, bool | None]]:
    delta = result["delta_psnr"]
    rows: list[tuple[str, str, str, bool | None]] = []
    if "control" in result:
        own = result["control"]
        met = own["opposite"]["mean"] >= TARGET_OPPOSITE
        rows += [
            ("left and right move apart", _share(own["opposite"]["mean"]), ">= 90 %", met),
            ("the same estimator on real turns", _share(own["real"]["opposite"]), "", None),
            ("input shows in the same tick", _share(own["same_tick"]["mean"]), "", None),
        ]
    name = f"PSNR, true minus random actions, tick {delta['tick']}"
    return [*rows, (name, _interval(delta["delta"], " dB"), "", None)]


def _turn_rows(result: dict[str, Any]) -> list[tuple[str, str, str, bool | None]]:
    if "turn" not in result:
        return []
    own = result["turn"]
    return [
        ("after 360 degrees, against the real frame", _interval(own["psnr"], " dB"), "", None),
        ("after 360 degrees, against a random frame", _interval(own["random"], " dB"), "", None),
        ("after 360 degrees, against its own first frame", _interval(own["closure"], " dB"), "", None),
    ]


def _table(part: dict[str, Any]) -> list[str]:
    lines = [
        "| Tick | PSNR | copy-seed | gain | SSIM | MS-SSIM | sharpness | change | colours | under 10 dB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for k, v in part["ticks"].items():
        cells = [k, f"{v['psnr']['mean']:.1f}", f"{v['copy_seed']['mean']:.1f}", _interval(v["gain"])]
        cells += [
            f"{v[m]['mean']:.2f}" for m in ("ssim", "ms_ssim", "laplacian_ratio", "change_ratio", "histogram")
        ]
        lines.append("| " + " | ".join([*cells, _share(v["under_10_db"])]) + " |")
    return lines


def _probe(result: dict[str, Any]) -> list[str]:
    if "probe" not in result:
        return []
    lines = ["", "**Imagined path**, by a probe from picture to pose (medians, map units and degrees)", ""]
    lines += ["| Tick | dream | probe on real frames |", "|---|---|---|"]
    for k, v in result["probe"].items():
        cells = [f"{p['distance']['median']:.0f}, {p['degrees']['median']:.0f}" for p in (v, v["real"])]
        lines.append(f"| {k} | {cells[0]} | {cells[1]} |")
    return lines


def _remarks(result: dict[str, Any]) -> list[str]:
    end = result["collapse"]
    kinds = ", ".join(f"{n} {kind}" for kind, n in end["kinds"].items() if n) or "none"
    recorded = end["real_recorded"]["look_around"]
    lines = [
        "",
        f"Collapsed ends by kind: {kinds}. The rule blames {recorded['blamed']} of {recorded['count']} ",
    ]
    lines[-1] += "stretches of recorded play in which the player looks around"
    if "real_same_actions" in end:
        real = end["real_same_actions"]
        lines[-1] += (
            f", and {real['blamed']} of {real['count']} rollouts of the real game under the same actions"
        )
    lines[-1] += "."
    for ticks, found in result.get("real_or_dream", {}).items():
        told, check = _share(found["accuracy"]["mean"]), _share(found["check"]["mean"])
        lines += [
            "",
            f"A small classifier tells {int(ticks) / 25:.1f} s of dream from real in {told} of clips ",
        ]
        lines[-1] += f"(50 % is chance; real against real: {check})."
    return lines


def _row(name: str, value: str, target: str, met: bool | None) -> str:
    mark = "" if met is None else ("met" if met else "missed")
    return f"| {name} | {value} | {target} | {mark} |"


def _interval(summary: dict[str, Any], unit: str = "") -> str:
    return f"{summary['mean']:.2f}{unit} ({summary['low']:.2f} to {summary['high']:.2f})"


def _share(value: float) -> str:
    return f"{100 * value:.0f} %"
