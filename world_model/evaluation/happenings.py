"""Protocol `events`: what happens in a dream of a fight, and how it sounds, against the real game.

Dreams go on from a context under the recorded actions. Monsters may act otherwise in them, and rightly so:
what is compared tick by tick is what the player's own actions bring about (`shots`), and of the rest how
often it happens to a player who aims at nothing (`rates`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from world_model.audio import AudioModel
from world_model.data.sources import make_source
from world_model.evaluation import shots
from world_model.evaluation.chances import BRANCH_TICKS, diversity
from world_model.evaluation.kills import check
from world_model.evaluation.plan import Plan
from world_model.evaluation.probes import Probes, train_probes
from world_model.evaluation.protocol import Clip, Dreamer, batched, dream, reals
from world_model.evaluation.rates import blind_rates
from world_model.evaluation.scenery import (
    KILLS,
    SCENERY,
    Scenery,
    Stretch,
    alive,
    headers_of,
    scenery_of,
    told,
)
from world_model.evaluation.sprites import SPRITE_TICKS, Boxes, ceiling
from world_model.evaluation.stats import mean_interval
from world_model.evaluation.windows import CONTEXT, HeldOut, windows
from world_model.types import DataError, SourceError

DIGIT_TICKS = (1, 8, 32, 128)
SPRITE_WINDOWS = 16
"""Windows whose context is decoded again: cheap, and so part of every plan."""

Headers = dict[str, dict[str, Any]]


def measure_all(
    dreamer: Dreamer, data: HeldOut, root: Path, plan: Plan, out: Path, source: str | None = None
) -> dict[str, Any]:
    """The parts `events`, `sprites` and `diversity` of an evaluation, and what was `omitted` of them and why.

    `source`: the game's name, for the blind player's rates. Nothing for a game of which it is not known
    where things happen. A plan without windows for events has `sprites` alone.
    """
    if data.episodes[0].header.get("source") not in SCENERY:
        return {}
    try:
        scenery, data = scenery_of(data), alive(data)
    except DataError as err:
        return {"omitted": {"events": str(err)}}
    few = windows(data, 1, SPRITE_WINDOWS, False, seed=plan.seed)
    found = ceiling(dreamer, data, few, scenery)
    result: dict[str, Any] = {"sprites": found} if found else {}
    if not plan.event_windows:
        return result
    omitted: dict[str, str] = {}
    try:
        probes = train_probes(root, scenery, plan.seed)
    except DataError as err:
        return result | {"omitted": {"events": str(err)}}
    clips = windows(data, _reach(data, plan.event_ticks), plan.event_windows, False, seed=plan.seed)
    own = measure_happenings(dreamer, data, clips, probes, plan.batch, out / "sounds.png", omitted)
    own |= _rates(dreamer, data, clips, probes, plan.batch, source, own["kill_probe"]["floor"], omitted)
    result["events"] = own
    if hasattr(dreamer, "reseeded"):
        starts = windows(data, _reach(data, max(BRANCH_TICKS)), plan.branches, False, seed=plan.seed)
        result["diversity"] = diversity(dreamer, starts, plan.batch)
    return result | ({"omitted": omitted} if omitted else {})


def measure_happenings(
    dreamer: Dreamer,
    data: HeldOut,
    clips: Sequence[Clip],
    probes: Probes,
    batch: int = 16,
    sounds: Path | None = None,
    omitted: dict[str, str] | None = None,
) -> dict[str, Any]:
    """`events` under the recorded actions; see docs/evaluation.md for what each figure is.

    Sound is measured on the clips that have it, where the dreamer has it too; where there is none, `omitted`
    is told. `sounds`: a PNG file for the spectrograms of the windows that are best, middling and worst by
    their bangs, real above dream.
    """
    scenery, headers = scenery_of(data), headers_of(data)
    dreamed, real, boxes = _stretches(dreamer, clips, headers, scenery, batch)
    names = [c.episode for c in clips]
    fired = [shots.true_shots(c, headers) for c in clips]
    digits, legible = _digits(dreamed, real, clips, headers, probes, scenery)
    result: dict[str, Any] = {
        "clips": [[c.episode, c.start] for c in clips],
        "context": clips[0].context,
        "ticks": clips[0].ticks,
        "boxes": boxes.means(names),
        "digits": digits,
        "kill_probe": check(
            probes.kills, [(s.views, told(c, headers, KILLS)) for s, c in zip(real, clips, strict=True)]
        ),
        "flash_f1": shots.flash_figures(dreamed, real, fired, names),
    }
    flashes = [shots.events.onset_f1(s.flashes(), f) for s, f in zip(dreamed, fired, strict=True)]
    result["per_clip"] = {"flash_f1": flashes} | boxes.per_clip() | legible
    loud = [i for i, s in enumerate(dreamed) if s.sound]
    if not loud:
        if omitted is not None:
            omitted["sound of events"] = _why_silent(clips)
        return result
    own, true = [dreamed[i] for i in loud], [real[i] for i in loud]
    bangs, of = [fired[i] for i in loud], [names[i] for i in loud]
    result["sound"] = shots.sound_figures(own, true, bangs, of, _codec(dreamer))
    heard = result["sound"].pop("per_clip")
    result["per_clip"] |= {key: _spread(values, loud, len(clips)) for key, values in heard.items()}
    if sounds is not None:
        shots.draw_sounds(sounds, own, true, bangs)
    return result


def _stretches(
    dreamer: Dreamer, clips: Sequence[Clip], headers: Headers, scenery: Scenery, batch: int
) -> tuple[list[Stretch], list[Stretch], Boxes]:
    """All clips as they were dreamed and as they were, and PSNR in boxes. Sound where both have it."""
    dreamed: list[Stretch] = []
    real: list[Stretch] = []
    boxes = Boxes(scenery)
    for group in batched(clips, batch):
        both = [Stretch(scenery) for _ in group], [Stretch(scenery) for _ in group]
        for k, images in enumerate(dream(dreamer, group)):
            truth = reals(group, k)
            for b, clip in enumerate(group):
                both[0][b].take(images[b])
                both[1][b].take(truth[b])
                if k in SPRITE_TICKS:
                    assert clip.labels is not None, "scenery_of makes sure of labels"
                    rows = np.asarray(clip.labels[clip.context - 1 + k])[None]
                    kinds = headers[clip.episode].get("labels", [])
                    boxes.add(k, images[b][None], truth[b][None], rows, kinds)
            if k and any(c.sound is not None for c in group):
                _listen(getattr(dreamer, "heard", None), group, both, k)
        dreamed += both[0]
        real += both[1]
    return dreamed, real, boxes


def _listen(heard: Any, group: list[Clip], both: tuple[list[Stretch], list[Stretch]], k: int) -> None:
    if heard is None:
        return
    for b, clip in enumerate(group):
        if clip.sound is not None:
            both[0][b].sound.append(heard[b])
            both[1][b].sound.append(np.asarray(clip.sound[clip.context - 2 + k]))


def _digits(
    dreamed: list[Stretch],
    real: list[Stretch],
    clips: Sequence[Clip],
    headers: Headers,
    probes: Probes,
    scenery: Scenery,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Share of fields that are legible, and of those that show what the game showed, by tick; and clip by
    clip the share of ticks that do. What cannot be read shows nothing."""
    names = [c.episode for c in clips]
    result: dict[str, Any] = {}
    per_clip: dict[str, Any] = {}
    for name in scenery.fields:
        own = [s.read(probes.reader, name) for s in dreamed]
        true = [s.read(probes.reader, name) for s in real]
        shown = [told(c, headers, name, scenery.late) for c in clips]
        right = [r.legible & (r.value == t) for r, t in zip(own, shown, strict=True)]
        near = [r.legible & (np.abs(r.value - t) <= 3) for r, t in zip(own, shown, strict=True)]
        read = [r.legible & (r.value == t) for r, t in zip(true, shown, strict=True)]
        result[name] = {
            str(k): {
                "legible": mean_interval([r.legible[k] for r in own], names),
                "right": mean_interval([r[k] for r in right], names),
                "within_3": mean_interval([r[k] for r in near], names),
                "real_right": mean_interval([r[k] for r in read], names),
            }
            for k in DIGIT_TICKS
            if k <= clips[0].ticks
        }
        per_clip[f"{name} legible"] = [round(float(r.legible[1:].mean()), 4) for r in own]
        per_clip[f"{name} right"] = [round(float(r[1:].mean()), 4) for r in right]
    return result, per_clip


def _rates(
    dreamer: Dreamer,
    data: HeldOut,
    clips: Sequence[Clip],
    probes: Probes,
    batch: int,
    source: str | None,
    floor: float,
    omitted: dict[str, str],
) -> dict[str, Any]:
    """The blind player's rates as `rates`, where there is a game to compare with."""
    what = "kills, wounds and shots of a blind player"
    if source is None:
        omitted[what] = "they need the source"
        return {}
    try:
        game = make_source(source, sound=False)
        try:
            scenery = scenery_of(data)
            found = blind_rates(dreamer, clips, data.actions, probes, scenery, game, floor, batch)
        finally:
            game.close()
    except (DataError, SourceError) as err:
        omitted[what] = str(err)
        return {}
    return {"rates": found}


def _why_silent(clips: Sequence[Clip]) -> str:
    recorded = any(c.sound is not None for c in clips)
    return "the dreamer has none" if recorded else "the held-out episodes have none"


def _codec(dreamer: Dreamer) -> AudioModel | None:
    """What a world's sound goes through, if it is a world and has any."""
    model = getattr(getattr(dreamer, "engine", None), "model", None)
    return getattr(model, "audio", None)


def _spread(values: list[Any], at: list[int], count: int) -> list[Any]:
    """Values of some clips as a list of all, None for the rest."""
    row: list[Any] = [None] * count
    for i, value in zip(at, values, strict=True):
        row[i] = value
    return row


def _reach(data: HeldOut, ticks: int) -> int:
    """As many of the wanted ticks as the longest held-out episode allows."""
    return max(1, min(ticks, max(len(e.frames) for e in data.episodes) - CONTEXT))
