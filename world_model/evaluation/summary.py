"""An evaluation as tables, with the targets beside the figures; and its headline for world.json."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from world_model.evaluation.event_tables import event_tables
from world_model.evaluation.sprites import sprite_row
from world_model.evaluation.tables import Table, interval, markdown, share, share_interval

TARGET_GAINS = {"8": 5.0, "32": 4.0, "128": 3.0}
TARGET_ONE_TICK = 5.0
TARGET_SHARPNESS = (0.6, 1.4)
SHARPNESS_TICKS = ("32", "128", "500")
TARGET_OPPOSITE = 0.9

Row = tuple[str, str, str, bool | None]
"""Figure, value, target, and whether it is met."""


def summary_markdown(result: dict[str, Any]) -> str:
    """The figures of an `eval.json` as Markdown: targets first, then every tick that was measured."""
    return introduction(result) + "\n\n" + markdown(summary_tables(result))


def introduction(result: dict[str, Any]) -> str:
    """What was measured on, in a few sentences."""
    data = result["data"]
    return (
        f"Held-out: {len(data['episodes'])} episodes, {data['ticks']} ticks of {data['source']}. "
        f"{data['context']} frames of context, then own predictions fed back under the recorded actions. "
        "Intervals are 95 % bootstraps over episodes."
    )


def summary_tables(result: dict[str, Any]) -> list[Table]:
    """All tables of an evaluation, in the order in which they are read; only of what was measured."""
    tables = [_targets(result), *_one_tick(result)]
    titles = {"rollout": "Moving windows", "rollout_all": "All windows", "rollout_long": "Long"}
    for key, title in titles.items():
        if key in result:
            tables.append(_rollout(f"{title} ({_counted(result[key]['clips'], 'windows')})", result[key]))
    tables += [*_memory(result), *_realness(result), *_probe(result), *event_tables(result)]
    tables += _remarks(result)
    return [t for t in tables if t.rows or t.note]


def headline(result: dict[str, Any]) -> dict[str, Any]:
    """The first figures alone, by name: what `world.json` carries."""
    found: dict[str, Any] = {}
    if "one_tick" in result:
        found["one_tick_gain"] = _three(result["one_tick"]["gain"])
    ticks = result.get("rollout", {}).get("ticks", {})
    everything = result.get("rollout_long", {}).get("ticks", {}) | ticks
    found |= {f"gain_{k}": _three(ticks[k]["gain"]) for k in TARGET_GAINS if k in ticks and ticks[k]["gain"]}
    sharp = {k: everything[k]["laplacian_ratio"] for k in SHARPNESS_TICKS if k in everything}
    found |= {f"sharpness_{k}": _three(ratio) for k, ratio in sharp.items()}
    if "collapse" in result:
        found["collapsed"] = result["collapse"]["collapsed"]
        found["collapse_rollouts"] = result["collapse"]["rollouts"]
    if "control" in result:
        found["opposite"] = _three(result["control"]["opposite"])
    return found


def _targets(result: dict[str, Any]) -> Table:
    rows: list[Row] = []
    if "one_tick" in result:
        gain = result["one_tick"]["gain"]
        met = gain["mean"] >= TARGET_ONE_TICK
        name = "one tick ahead, above persistence"
        rows.append((name, interval(gain, " dB"), f">= {TARGET_ONE_TICK:g} dB", met))
    ticks = result.get("rollout", {}).get("ticks", {})
    for k, target in TARGET_GAINS.items():
        if k in ticks and ticks[k]["gain"]:
            gain = ticks[k]["gain"]
            met = gain["mean"] >= target
            rows.append((f"above copy-seed, tick {k}", interval(gain, " dB"), f">= {target:g} dB", met))
    low, high = TARGET_SHARPNESS
    everything = result.get("rollout_long", {}).get("ticks", {}) | ticks
    for k in (k for k in SHARPNESS_TICKS if k in everything):
        ratio = everything[k]["laplacian_ratio"]
        met = low <= ratio["mean"] <= high
        rows.append((f"sharpness, tick {k}", interval(ratio), f"{low} to {high}", met))
    if "collapse" in result:
        end = result["collapse"]
        name = f"collapsed of {end['rollouts']} rollouts, {end['ticks']} ticks"
        rows.append((name, str(end["collapsed"]), "0", end["collapsed"] == 0))
    rows += [*_control(result), *_turn(result), *sprite_row(result)]
    marks = {None: "", True: "met", False: "missed"}
    return Table("", ("Figure", "Value", "Target", ""), tuple((*r[:3], marks[r[3]]) for r in rows))


def _control(result: dict[str, Any]) -> Iterator[Row]:
    if "control" in result:
        own = result["control"]
        met = own["opposite"]["mean"] >= TARGET_OPPOSITE
        yield "left and right move apart", share(own["opposite"]["mean"]), ">= 90 %", met
        yield "the same estimator on real turns", share(own["real"]["opposite"]), "", None
        yield "input shows in the same tick", share(own["same_tick"]["mean"]), "", None
    if "delta_psnr" in result:
        delta = result["delta_psnr"]
        name = f"PSNR, true minus random actions, tick {delta['tick']}"
        yield name, interval(delta["delta"], " dB"), "", None


def _turn(result: dict[str, Any]) -> Iterator[Row]:
    if "turn" in result:
        own = result["turn"]
        yield "after 360 degrees, against the real frame", interval(own["psnr"], " dB"), "", None
        yield "after 360 degrees, against a random frame", interval(own["random"], " dB"), "", None
        yield "after 360 degrees, against its own first frame", interval(own["closure"], " dB"), "", None


def _one_tick(result: dict[str, Any]) -> Iterator[Table]:
    if "one_tick" in result:
        names = {
            "psnr": "PSNR",
            "persistence": "persistence",
            "ssim": "SSIM",
            "ms_ssim": "MS-SSIM",
            "ceiling": "decode ceiling",
        }
        own = result["one_tick"]
        rows = tuple((title, interval(own[key])) for key, title in names.items() if key in own)
        yield Table(f"One tick ahead ({own['ticks']} ticks that moved)", ("Figure", "Value"), rows)


def _rollout(title: str, part: dict[str, Any]) -> Table:
    head = ("Tick", "PSNR", "copy-seed", "gain", "SSIM", "MS-SSIM", "sharpness", "change", "colours")
    rows = []
    for k, v in part["ticks"].items():
        cells = [k, f"{v['psnr']['mean']:.1f}"]
        cells += [f"{v['copy_seed']['mean']:.1f}", interval(v["gain"])] if v["gain"] else ["-", "-"]
        cells += [
            f"{v[m]['mean']:.2f}" for m in ("ssim", "ms_ssim", "laplacian_ratio", "change_ratio", "histogram")
        ]
        rows.append((*cells, share(v["under_10_db"])))
    return Table(title, (*head, "under 10 dB"), tuple(rows))


def _memory(result: dict[str, Any]) -> Iterator[Table]:
    back = ("the game with itself", "the game is back")
    for key, title, against in (
        ("recall", "Back along what was seen", "against the remembered frame"),
        ("retrace", "There and back, both dreamed", "the dream with itself"),
    ):
        if key in result:
            part = result[key]
            yield Table(
                f"{title} ({len(part['clips'])} walks)",
                ("Ticks back", "seen ticks ago", "PSNR", "copy-seed", against, *back),
                tuple(_way_back_row(k, v) for k, v in part["ticks"].items()),
            )
    if "closure" in result:
        rows = []
        for key, who in (("closure", "dream"), ("closure_real", "the game")):
            rows += [_closure_row(f"{who}, {name}", v) for name, v in result.get(key, {}).items()]
        head = ("Loop", "at its end", "half-way", "against another start")
        yield Table("Against the own first picture", head, tuple(rows))


def _way_back_row(k: str, v: dict[str, Any]) -> tuple[str, ...]:
    own = v.get("remembered") or v.get("own")
    return (
        k,
        f"{v['distance']['mean']:.0f}",
        interval(v["psnr"]),
        f"{v['copy_seed']['mean']:.2f}",
        interval(own) if own else "-",
        f"{v['real_own']['mean']:.2f}" if own else "-",
        share(v["same_place"]["mean"]),
    )


def _closure_row(name: str, v: dict[str, Any]) -> tuple[str, ...]:
    loops = (interval(v[m], " dB") for m in ("closure", "away", "other"))
    return f"{name}, {v['ticks']} ticks", *loops


def _probe(result: dict[str, Any]) -> Iterator[Table]:
    if "probe" in result:
        rows = []
        for k, v in result["probe"].items():
            pair = [f"{p['distance']['median']:.0f}, {p['degrees']['median']:.0f}" for p in (v, v["real"])]
            rows.append((k, *pair))
        title = "Imagined path, by a probe from picture to pose (medians, map units and degrees)"
        yield Table(title, ("Tick", "dream", "probe on real frames"), tuple(rows))


def _realness(result: dict[str, Any]) -> Iterator[Table]:
    found = result.get("real_or_dream")
    if found:
        kinds = {
            "accuracy": "dream",
            "check": "other real clips",
            "blurred": "real clips, blurred by 3 x 3",
            "halting": "real clips, every other picture held",
        }
        rows = tuple(
            (f"{int(ticks) / 25:.1f} s of {title}", share_interval(own[kind]))
            for ticks, own in found.items()
            for kind, title in kinds.items()
        )
        note = "Share of clips that a small classifier tells right; 50 % is chance."
        weak = [f"{int(ticks) / 25:.1f} s" for ticks, own in found.items() if not own["able"]]
        if weak:
            note += (
                f" The judge is too weak at {' and '.join(weak)}: it must tell 90 % of the blurred and of "
                "the halting clips, or what it says of the dream counts for nothing."
            )
        yield Table("Told from real clips", ("Clips", "Told right"), rows, note)


def _remarks(result: dict[str, Any]) -> Iterator[Table]:
    if "collapse" in result:
        yield _note(_collapse_remark(result["collapse"]))
    for name, reason in result.get("omitted", {}).items():
        yield _note(f"Not measured: {name} ({reason}).")


def _collapse_remark(end: dict[str, Any]) -> str:
    kinds = ", ".join(f"{n} {kind}" for kind, n in end["kinds"].items() if n) or "none"
    recorded = end["real_recorded"]["look_around"]
    text = (
        f"Collapsed ends by kind: {kinds}. The rule blames {recorded['blamed']} of {recorded['count']} "
        "stretches of recorded play in which the player looks around"
    )
    if "real_same_actions" in end:
        real = end["real_same_actions"]
        text += f", and {real['blamed']} of {real['count']} rollouts of the real game under the same actions"
        if real.get("ended"):
            text += f" ({real['ended']} more ended with the player's death before their last tick)"
    return text + "."


def _counted(clips: list[list[Any]], what: str) -> str:
    """How many there are, and of how many episodes: intervals are over these."""
    episodes = len({name for name, _ in clips})
    return f"{len(clips)} {what} of {episodes} episode{'s' * (episodes != 1)}"


def _note(text: str) -> Table:
    return Table("", (), (), text)


def _three(summary: dict[str, Any]) -> list[float]:
    """Mean, low and high; the mean alone where one episode gives no interval."""
    return [round(float(summary[k]), 3) for k in ("mean", "low", "high") if summary[k] is not None]
