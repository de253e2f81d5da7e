"""An evaluation as tables, with the targets beside the figures; and its headline for world.json."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from world_model.evaluation.tables import Table, interval, markdown, share

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
            tables.append(_rollout(f"{title} ({len(result[key]['clips'])} windows)", result[key]))
    tables += [*_memory(result), *_probe(result), *_events(result), *_remarks(result)]
    return [t for t in tables if t.rows or t.note]


def headline(result: dict[str, Any]) -> dict[str, Any]:
    """The first figures alone, by name: what `world.json` carries."""
    found: dict[str, Any] = {}
    if "one_tick" in result:
        found["one_tick_gain"] = _three(result["one_tick"]["gain"])
    ticks = result.get("rollout", {}).get("ticks", {})
    everything = result.get("rollout_long", {}).get("ticks", {}) | ticks
    found |= {f"gain_{k}": _three(ticks[k]["gain"]) for k in TARGET_GAINS if k in ticks}
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
        if k in ticks:
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
    rows += [*_control(result), *_turn(result)]
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
        cells = [k, f"{v['psnr']['mean']:.1f}", f"{v['copy_seed']['mean']:.1f}", interval(v["gain"])]
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


def _events(result: dict[str, Any]) -> Iterator[Table]:
    own = result.get("events")
    if own:
        count = f"{len(own['clips'])} windows of {own['ticks']} ticks"
        yield Table(
            f"What happens a minute ({count})", ("", "dream", "game", "as the game tells"), _rates(own)
        )
        yield Table("How it shows", ("Figure", "Value"), tuple(_shows(own)))
        names = {"SELECTED_WEAPON_AMMO": "ammunition", "HEALTH": "health"}
        digits = [(names.get(n, n), k, v) for n, ticks in own["digits"].items() for k, v in ticks.items()]
        head = ("Digits", "Tick", "legible", "as in the game", "within 3", "the reader on real frames")
        kinds = ("legible", "right", "within_3", "real_right")
        rows = tuple((n, k, *(share(v[m]["mean"]) for m in kinds)) for n, k, v in digits)
        yield Table("Numbers in the status bar", head, rows)
    if "diversity" in result:
        found = result["diversity"]
        apart = ", ".join(f"{v['mean']:.1f} dB at tick {k}" for k, v in found["psnr"].items())
        same = "repeats itself to the byte" if found["same_seed_repeats"] else "does not repeat itself"
        text = f"Dreams of {found['seeds']} seeds from one start are alike to {apart}; the same seed {same}."
        yield _note(text)


def _rates(own: dict[str, Any]) -> tuple[tuple[str, ...], ...]:
    titles = {"kills": "kills", "health_lost": "health lost", "shots": "shots"}
    who = ("dream", "real", "told")
    return tuple((title, *(f"{own['rates'][w][k]:.1f}" for w in who)) for k, title in titles.items())


def _shows(own: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name, key in (("flashes", "flash_f1"), ("bangs", "bang_f1")):
        f1 = own.get(key) or own.get("sound", {}).get(key)
        if f1:
            counts = f"{f1['dream']} dreamed, {f1['real']} real"
            yield f"{name}, F1 within a tick", f"{f1['f1']:.2f} ({counts})"
    counted = own["rates"]
    pair = [share(counted[w]["counted_down_by_one"]) for w in ("dream", "real")]
    yield "ammunition falls by one, of all falls", f"{pair[0]} (game {pair[1]})"
    if "sound" in own:
        offset = own["sound"]["flash_to_bang"]
        yield "from flash to bang", f"{offset['dream']} ticks (game {offset['real']})"
        for kind, title in (("dream", "sound"), ("silence", "silence"), ("shuffled", "shuffled ticks")):
            yield f"{title} to the real sound, log-mel", interval(own["sound"]["log_mel"][kind], " dB")
    names = {"living": "monsters", "items": "items", "bar": "status bar", "picture": "whole picture"}
    for part, title in names.items():
        if own["ceiling"].get(part):
            yield f"decode ceiling, {title}", interval(own["ceiling"][part], " dB")
        for k, v in own["boxes"][part].items():
            yield f"{title}, tick {k}", interval(v, " dB")


def _remarks(result: dict[str, Any]) -> Iterator[Table]:
    if "collapse" in result:
        yield _note(_collapse_remark(result["collapse"]))
    for ticks, found in result.get("real_or_dream", {}).items():
        told, check = share(found["accuracy"]["mean"]), share(found["check"]["mean"])
        yield _note(
            f"A small classifier tells {int(ticks) / 25:.1f} s of dream from real in {told} of clips "
            f"(50 % is chance; real against real: {check})."
        )
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
    return text + "."


def _note(text: str) -> Table:
    return Table("", (), (), text)


def _three(summary: dict[str, Any]) -> list[float]:
    """Mean, low and high."""
    return [round(float(summary[k]), 3) for k in ("mean", "low", "high")]
