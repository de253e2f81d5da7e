"""The protocol `events` as tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from world_model.evaluation.tables import Table, interval, share

RATE_NAMES = {"kills": "kills", "health_lost": "health lost", "shots": "shots"}
PART_NAMES = {
    "sprites": "monsters and things",
    "living": "living monsters",
    "items": "items",
    "bar": "status bar",
    "picture": "whole picture",
}
NUMBER_NAMES = {"SELECTED_WEAPON_AMMO": "ammunition", "HEALTH": "health"}


def event_tables(result: dict[str, Any]) -> Iterator[Table]:
    """What was measured of `events`, `sprites` and `diversity`, in the order in which it is read."""
    own = result.get("events")
    if own:
        if "rates" in own:
            yield _rates(own)
        yield _shots(own)
        yield _numbers(own)
    rows = [*_decoded(result.get("sprites", {})), *(_boxes(own) if own else ())]
    if rows:
        head = ("Within boxes", "Tick", "PSNR", "below the whole of the same pictures")
        yield Table("Monsters, things and status bar", head, tuple(rows))
    if "diversity" in result:
        yield _chances(result["diversity"])


def _rates(own: dict[str, Any]) -> Table:
    rates, probe = own["rates"], own["kill_probe"]
    rows = [
        (title, *(_maybe(rates[who][what], ".1f") for who in ("dream", "real", "told")))
        for what, title in RATE_NAMES.items()
    ]
    down = [rates[who]["counted_down_by_one"] for who in ("dream", "real")]
    rows.append(
        ("ammunition falls by one, of all falls", *("-" if d is None else share(d) for d in down), "")
    )
    controls = ", ".join(f"{name} {value:.1f}" for name, value in probe["controls"].items())
    alike = "-" if probe["correlation"] is None else f"{probe['correlation']:.2f}"
    note = (
        f"The kill probe on recorded play: {probe['real']:.1f} a minute (told: {probe['told']:.1f}), "
        f"correlation from window to window {alike}; on pictures without kills: {controls}."
    )
    if any(rates[who]["kills"] is None for who in ("dream", "real")):
        note += f" Kills are left out where the probe sees no more than in these ({probe['floor']:.1f})."
    title = f"A minute of a blind player ({len(rates['clips'])} starts)"
    return Table(title, ("", "dream", "game", "as the game tells"), tuple(rows), note)


def _shots(own: dict[str, Any]) -> Table:
    sound = own.get("sound", {})
    rows = []
    for name, f1 in (("flashes", own["flash_f1"]), ("bangs", sound.get("bang_f1"))):
        if f1:
            counts = f1["counts"]
            of = f"{name} at the player's shots, F1 ({counts['dream']} dreamed, {counts['shots']} shots)"
            rows.append((of, *(_maybe(f1.get(who), ".2f") for who in ("dream", "real", "codec", "chance"))))
    if sound:
        lag = sound["flash_to_bang"]
        rows.append(("ticks from flash to bang", _lag(lag["dream"]), _lag(lag["real"]), "", ""))
        mel = sound["log_mel"]
        beside = f"silence {mel['silence']['mean']:.2f}, shuffled ticks {mel['shuffled']['mean']:.2f} dB"
        rows.append((f"log-mel to the real sound ({beside})", interval(mel["dream"], " dB"), "", "", ""))
    head = ("", "dream", "game", "the game's sound through the codec", "another window's")
    count = f"{len(own['clips'])} windows of {own['ticks']} ticks"
    note = f"Sound of {sound['clips']} windows." if sound else ""
    return Table(f"Shots as they show ({count})", head, tuple(rows), note)


def _numbers(own: dict[str, Any]) -> Table:
    kinds = ("legible", "right", "within_3", "real_right")
    rows = tuple(
        (NUMBER_NAMES.get(name, name), k, *(share(v[m]["mean"]) for m in kinds))
        for name, ticks in own["digits"].items()
        for k, v in ticks.items()
    )
    head = ("Digits", "Tick", "legible", "as in the game", "within 3", "the reader on real frames")
    return Table("Numbers in the status bar", head, rows)


def _decoded(found: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for part, title in PART_NAMES.items():
        if part in found:
            yield title, "real, decoded", *_pair(found[part], part)


def _boxes(own: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for part, title in PART_NAMES.items():
        for k, v in own["boxes"][part].items():
            yield title, k, *_pair(v, part)


def _pair(found: dict[str, Any], part: str) -> tuple[str, str]:
    return interval(found["psnr"], " dB"), "" if part == "picture" else interval(found["gap"], " dB")


def _chances(found: dict[str, Any]) -> Table:
    apart = ", ".join(
        f"{v['mean']:.1f} dB at tick {k} (real pictures of other starts {found['starts'].get(k, 0):.1f})"
        for k, v in found["psnr"].items()
    )
    same = "repeats itself to the byte" if found["same_seed_repeats"] else "does not repeat itself"
    sharp = ", ".join(f"{own['sharpness']:.2f}" for own in found["own"])
    text = f"Dreams of {found['seeds']} seeds from one start are alike to {apart}; the same seed {same}. "
    text += f"Their own sharpness: {sharp} (1 is the game's)"
    bangs = [own["bangs"] for own in found["own"]]
    if found["real"]["bangs"] is not None and None not in bangs:
        text += (
            f"; bangs a minute: {', '.join(f'{b:.0f}' for b in bangs)} (game {found['real']['bangs']:.0f})"
        )
    return Table("", (), (), text + ".")


def _maybe(summary: dict[str, Any] | None, form: str) -> str:
    """Mean and interval of what may not have been measured."""
    if not summary:
        return "-"
    text = f"{summary['mean']:{form}}"
    if summary["low"] is None:  # one episode gives no interval
        return text
    return f"{text} ({summary['low']:{form}} to {summary['high']:{form}})"


def _lag(found: dict[str, Any] | None) -> str:
    if found is None:
        return "unrelated"
    return f"{found['ticks']} ({found['pairs']} pairs, correlation {found['correlation']:.2f})"
