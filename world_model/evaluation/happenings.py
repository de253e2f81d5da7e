"""Protocol `events`: what happens in a dream of a fight, and how it sounds, against the real game.

Dreams go on from a context under the recorded actions. Monsters may act otherwise in them, and rightly so:
what is compared tick by tick is what the player's own actions bring about, and of the rest how often.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from world_model.data.arena import FIELDS, FLASH, ITEMS, MONSTERS, STATUS_BAR
from world_model.evaluation import events
from world_model.evaluation.digits import DigitReader, Reading, train_reader
from world_model.evaluation.events import Box
from world_model.evaluation.kills import KillProbe, counted, small_views, train_kill_probe
from world_model.evaluation.metrics import psnr
from world_model.evaluation.protocol import Clip, Dreamer, batched, context_of, dream, reals
from world_model.evaluation.sheets import pick
from world_model.evaluation.stats import mean_interval
from world_model.evaluation.windows import HeldOut, held_out
from world_model.spectrum import spectrogram
from world_model.training.pictures import write_png
from world_model.types import FPS, DataError

SPRITE_TICKS = (1, 4, 8)
DIGIT_TICKS = (1, 8, 32, 128)
BRANCH_TICKS = (8, 32, 64)
SEEDS = 4
SOUND_RATE = 22050
HEARD_TICKS = 125
"""Five seconds of sound are drawn of a window."""
PARTS = ("living", "items", "bar", "picture")
TRAINING_STRIDE = 8
"""Of the training frames, every so many are looked at for digits."""


Boxes = dict[str, dict[int, list[float]]]
"""PSNR within the boxes of a part of the picture, by tick and window."""


@dataclass(frozen=True)
class Scenery:
    """Where in a source's picture things happen. `fields`: number boxes by the variable that they show."""

    flash: Box
    bar: Box
    fields: dict[str, Box]
    living: frozenset[str]
    items: frozenset[str]


SCENERY = {"arena": Scenery(FLASH, STATUS_BAR, FIELDS, MONSTERS, ITEMS)}
"""By source. The protocol measures these alone."""


@dataclass
class _Stretch:
    """One window as it was dreamed, or as it was: everything that is measured of it, tick 0 first."""

    flash: list[NDArray[np.uint8]] = field(default_factory=list)
    bar: list[NDArray[np.uint8]] = field(default_factory=list)
    views: list[Tensor] = field(default_factory=list)
    sound: list[NDArray[np.int16]] = field(default_factory=list)

    def take(self, picture: NDArray[np.uint8], scenery: Scenery) -> None:
        self.flash.append(events.crop(picture, scenery.flash))
        self.bar.append(events.crop(picture, scenery.bar))
        self.views.append(small_views(picture[None])[0])

    def read(self, reader: DigitReader, box: Box, bar: Box) -> Reading:
        x, y, width, height = box
        return reader.read(np.stack(self.bar), (x - bar[0], y - bar[1], width, height))

    def flashes(self) -> events.Events:
        crops = np.stack(self.flash)
        return events.flash_onsets(crops, (0, 0, crops.shape[2], crops.shape[1]))[1:]

    def bangs(self) -> events.Events:
        return events.sound_onsets(np.stack(self.sound))


@dataclass(frozen=True)
class Probes:
    """What reads numbers and counts kills, trained on real training episodes."""

    reader: DigitReader
    kills: KillProbe


def scenery_of(data: HeldOut) -> Scenery:
    """Raises DataError for a source of which the protocol does not know where things happen."""
    source = str(data.episodes[0].header.get("source"))
    if source not in SCENERY:
        raise DataError(f"events are known of {', '.join(SCENERY)} and not of {source}")
    if data.episodes[0].variables is None or data.episodes[0].labels is None:
        raise DataError("the held-out episodes tell no game variables or labels; collect them again")
    return SCENERY[source]


def train_probes(root: Path, scenery: Scenery, seed: int = 0, steps: tuple[int, int] = (600, 1200)) -> Probes:
    """Both probes, on the training split of `root`, so many `steps` for digits and for kills.

    Raises DataError when it tells no variables.
    """
    data = held_out(root, "train")
    pictures, boxes, values, stretches = [], [], [], []
    for episode in data.episodes:
        names = episode.header.get("variables", [])
        if episode.variables is None or not {*scenery.fields, "KILLCOUNT"} <= set(names):
            raise DataError(f"{root}: the training episodes lack {', '.join(scenery.fields)} or KILLCOUNT")
        frames = np.asarray(episode.frames[::TRAINING_STRIDE])
        for name, box in scenery.fields.items():
            pictures.append(events.crop(frames, box))
            boxes.append((0, 0, box[2], box[3]))
            values.append(np.asarray(episode.variables[::TRAINING_STRIDE, names.index(name)], np.int64))
        views = torch.cat([small_views(part) for part in np.array_split(episode.frames, 8)])
        stretches.append((views, np.asarray(episode.variables[:, names.index("KILLCOUNT")])))
    reader = train_reader(pictures, boxes, values, steps[0], seed)
    return Probes(reader, train_kill_probe(stretches, steps[1], seed))


def measure_happenings(
    dreamer: Dreamer,
    data: HeldOut,
    clips: Sequence[Clip],
    probes: Probes,
    batch: int = 16,
    sounds: Path | None = None,
) -> dict[str, Any]:
    """All of `events` but the chances (`diversity`); see docs/evaluation.md for what each figure is.

    Sound is left out where dreamer or episodes have none. `sounds`: a PNG file for the spectrograms of the
    windows that are best, middling and worst by their bangs, real above dream.
    """
    scenery = scenery_of(data)
    headers = dict(zip(data.names, (e.header for e in data.episodes), strict=True))
    dreamed, real = [], []
    boxes: Boxes = {part: {} for part in PARTS}
    for group in batched(clips, batch):
        both = [_Stretch() for _ in group], [_Stretch() for _ in group]
        for k, images in enumerate(dream(dreamer, group)):
            truth, heard = reals(group, k), getattr(dreamer, "heard", None) if k else None
            for b, clip in enumerate(group):
                for stretches, picture in zip(both, (images[b], truth[b]), strict=True):
                    stretches[b].take(picture, scenery)
                if heard is not None and clip.sound is not None:
                    both[0][b].sound.append(heard[b])
                    both[1][b].sound.append(np.asarray(clip.sound[clip.context - 2 + k]))
                if k in SPRITE_TICKS:
                    kinds = headers[clip.episode].get("labels", [])
                    _box_errors(boxes, k, images[b], truth[b], clip, scenery, kinds)
        dreamed += both[0]
        real += both[1]
    names = [c.episode for c in clips]
    result: dict[str, Any] = {"clips": [[c.episode, c.start] for c in clips], "ticks": clips[0].ticks}
    result["boxes"] = {part: _means(ticks, names) for part, ticks in boxes.items()}
    result["digits"] = _digits(dreamed, real, clips, headers, probes.reader, scenery, names)
    result["rates"] = _rates(dreamed, real, clips, headers, probes, scenery)
    f1 = [_f1(a.flashes(), b.flashes()) for a, b in zip(dreamed, real, strict=True)]
    result["flash_f1"] = _pooled(f1)
    if dreamed[0].sound:
        result["sound"] = _sound(dreamed, real, names)
        if sounds is not None:
            _draw_sounds(sounds, dreamed, real)
    return result


def diversity(dreamer: Dreamer, clips: Sequence[Clip], batch: int = 16, seeds: int = SEEDS) -> dict[str, Any]:
    """How far dreams of other seeds part from one another after the same start, under the same actions.

    By tick: mean PSNR of pairs of dreams (lower is more different), and whether a seed repeats itself to
    the byte. Raises DataError for a dreamer that has no seeds.
    """
    again: Callable[[int], Dreamer] | None = getattr(dreamer, "reseeded", None)
    if again is None:
        raise DataError("only a world has other chances under another seed")
    names: list[str] = []
    pairs: dict[int, list[float]] = {k: [] for k in BRANCH_TICKS}
    repeats = True
    for group in batched(clips, batch):
        runs = [_at(again(seed), group, pairs) for seed in (*range(1, seeds + 1), 1)]
        for k in pairs:
            repeats = repeats and bool(np.array_equal(runs[0][k], runs[-1][k]))
            for b in range(len(group)):
                own = [run[k][b] for run in runs[:-1]]
                alike = [psnr(x, y) for i, x in enumerate(own) for y in own[:i]]
                pairs[k].append(float(np.mean(alike)))
        names += [c.episode for c in group]
    return {
        "seeds": seeds,
        "same_seed_repeats": repeats,
        "psnr": {str(k): mean_interval(v, names) for k, v in pairs.items()},
    }


def _at(dreamer: Dreamer, clips: list[Clip], ticks: dict[int, Any]) -> dict[int, NDArray[np.uint8]]:
    actions = np.stack([np.asarray(c.future[: max(ticks)], np.int64) for c in clips])
    found = {}
    for k, images in enumerate(dream(dreamer, clips, actions, painted=ticks)):
        if k in ticks:
            found[k] = images
    return found


def ceiling(dreamer: Dreamer, data: HeldOut, clips: Sequence[Clip]) -> dict[str, Any]:
    """PSNR of the decoder's reconstruction within the boxes of living things, items and status bar."""
    scenery = scenery_of(data)
    headers = dict(zip(data.names, (e.header for e in data.episodes), strict=True))
    make = getattr(dreamer, "reconstruct", None)
    if make is None:
        return {}
    boxes: Boxes = {part: {} for part in PARTS}
    for clip in clips:
        obs, _, _ = context_of([clip])
        last = make(obs[:, -1:])[0, 0]
        _box_errors(boxes, 0, last, obs[0, -1], clip, scenery, headers[clip.episode].get("labels", []))
    names = [c.episode for c in clips]
    found = {part: _means(ticks, names).get("0") for part, ticks in boxes.items()}
    return {part: mean for part, mean in found.items() if mean}


def _box_errors(
    boxes: Boxes,
    k: int,
    image: NDArray[np.uint8],
    real: NDArray[np.uint8],
    clip: Clip,
    scenery: Scenery,
    kinds: Sequence[str],
) -> None:
    """Adds PSNR within boxes; NaN where a picture has no such box."""
    assert clip.labels is not None, "scenery_of makes sure of labels"
    seen = [row for row in np.asarray(clip.labels[clip.context - 1 + k]).tolist() if row[0]]
    for part, wanted in (("living", scenery.living), ("items", scenery.items)):
        own = [tuple(row[1:]) for row in seen if kinds[row[0] - 1] in wanted]
        boxes[part].setdefault(k, []).append(events.box_psnr(image, real, own))
    boxes["bar"].setdefault(k, []).append(events.box_psnr(image, real, [scenery.bar]))
    boxes["picture"].setdefault(k, []).append(psnr(image, real))


def _means(ticks: dict[int, list[float]], names: list[str]) -> dict[str, Any]:
    """Means by tick over the pictures that have such a box; nothing of ticks where none has."""
    found = {}
    for k, values in ticks.items():
        kept = [(v, n) for v, n in zip(values, names, strict=True) if not np.isnan(v)]
        if kept:
            found[str(k)] = mean_interval([v for v, _ in kept], [n for _, n in kept])
    return found


def _digits(
    dreamed: list[_Stretch],
    real: list[_Stretch],
    clips: Sequence[Clip],
    headers: dict[str, dict[str, Any]],
    reader: DigitReader,
    scenery: Scenery,
    names: list[str],
) -> dict[str, Any]:
    """Share of fields that are legible, and of those that show what the game showed, by tick."""
    result: dict[str, Any] = {}
    for name, box in scenery.fields.items():
        own = [s.read(reader, box, scenery.bar) for s in dreamed]
        true = [s.read(reader, box, scenery.bar) for s in real]
        told = [_told(c, headers, name) for c in clips]
        ticks = {}
        for k in (k for k in DIGIT_TICKS if k <= clips[0].ticks):
            right = [r.value[k] == t[k] for r, t in zip(own, told, strict=True)]
            check = [r.value[k] == t[k] for r, t in zip(true, told, strict=True)]
            near = [abs(int(r.value[k]) - int(t[k])) <= 3 for r, t in zip(own, told, strict=True)]
            ticks[str(k)] = {
                "legible": mean_interval([r.legible[k] for r in own], names),
                "right": mean_interval(right, names),
                "within_3": mean_interval(near, names),
                "real_right": mean_interval(check, names),
            }
        result[name] = ticks
    return result


def _rates(
    dreamed: list[_Stretch],
    real: list[_Stretch],
    clips: Sequence[Clip],
    headers: dict[str, dict[str, Any]],
    probes: Probes,
    scenery: Scenery,
) -> dict[str, Any]:
    """Kills, health lost and shots a minute, in dreams, in the same stretches of the game by the same probes,
    and as the game tells."""
    minutes = sum(c.ticks for c in clips) / FPS / 60
    kinds = {"dream": dreamed, "real": real}
    rates: dict[str, dict[str, float]] = {}
    for who, stretches in kinds.items():
        kills = sum(probes.kills.count(torch.stack(s.views)) for s in stretches)
        lost = sum(_falls(s.read(probes.reader, scenery.fields["HEALTH"], scenery.bar)) for s in stretches)
        ammo = [s.read(probes.reader, scenery.fields["SELECTED_WEAPON_AMMO"], scenery.bar) for s in stretches]
        shots = [_steps(a) for a in ammo]
        rates[who] = {
            "kills": kills / minutes,
            "health_lost": lost / minutes,
            "shots": sum(int((s < 0).sum()) for s in shots) / minutes,
            # A shot takes one round: what else a falling number shows is a miscount.
            "counted_down_by_one": _share([s == -1 for s in shots], [s < 0 for s in shots]),
        }
    told: dict[str, float] = {
        "kills": sum(counted(_told(c, headers, "KILLCOUNT")) for c in clips) / minutes,
        "health_lost": sum(-np.diff(_told(c, headers, "HEALTH").clip(0)).clip(None, 0).sum() for c in clips)
        / minutes,
        "shots": sum((np.diff(_told(c, headers, "SELECTED_WEAPON_AMMO")) < 0).sum() for c in clips) / minutes,
    }
    rates["told"] = told
    return {who: {k: round(float(v), 3) for k, v in row.items()} for who, row in rates.items()}


def _steps(reading: Reading) -> NDArray[np.int64]:
    """Changes of a number from one legible tick to the next legible one."""
    return np.diff(reading.value[reading.legible])


def _falls(reading: Reading) -> int:
    return int(-_steps(reading).clip(None, 0).sum())


def _share(some: list[Any], of: list[Any]) -> float:
    total = sum(int(x.sum()) for x in of)
    return sum(int(x.sum()) for x in some) / total if total else 0.0


def _told(clip: Clip, headers: dict[str, dict[str, Any]], name: str) -> NDArray[np.int32]:
    assert clip.variables is not None, "scenery_of makes sure of variables"
    column = headers[clip.episode]["variables"].index(name)
    return np.asarray(clip.variables[clip.context - 1 :, column]).clip(0)


def _sound(dreamed: list[_Stretch], real: list[_Stretch], names: list[str]) -> dict[str, Any]:
    pairs = list(zip(dreamed, real, strict=True))
    scores = [events.log_mel_scores(np.stack(a.sound), np.stack(b.sound)) for a, b in pairs]
    result: dict[str, Any] = {"bang_f1": _pooled([_f1(a.bangs(), b.bangs()) for a, b in pairs])}
    result["log_mel"] = {k: mean_interval([s[k] for s in scores], names) for k in scores[0]}
    result["flash_to_bang"] = {
        who: _offset([s.flashes() for s in stretches], [s.bangs() for s in stretches])
        for who, stretches in (("dream", dreamed), ("real", real))
    }
    return result


def _draw_sounds(path: Path, dreamed: list[_Stretch], real: list[_Stretch]) -> None:
    f1 = [events.onset_f1(a.bangs(), b.bangs()) for a, b in zip(dreamed, real, strict=True)]
    strips = []
    for i in pick(f1).values():
        for stretch in (real[i], dreamed[i]):
            line = np.concatenate(stretch.sound[:HEARD_TICKS]).astype(np.float32).mean(1) / events.FULL_SCALE
            image = spectrogram(torch.from_numpy(line), SOUND_RATE)
            strips.append(np.pad(image, ((0, 3), (0, 0), (0, 0)), constant_values=60))
        strips.append(np.full((6, *strips[0].shape[1:]), 255, np.uint8))
    write_png(path, np.concatenate(strips[:-1]))


def _offset(seen: list[events.Events], heard: list[events.Events]) -> int | None:
    """Ticks from flash to bang over all stretches together; None where there are none of either."""
    try:
        return events.picture_sound_offset(np.concatenate(seen), np.concatenate(heard))
    except ValueError:
        return None


def _f1(found: events.Events, true: events.Events) -> tuple[float, int, int]:
    """Pairs within a tick of one another, events found, true events."""
    count, total = int(found.sum()), int(true.sum())
    return events.onset_f1(found, true) * (count + total) / 2, count, total


def _pooled(parts: list[tuple[float, int, int]]) -> dict[str, Any]:
    """F1 over all stretches together: one without events says nothing by itself."""
    matched, found, true = (sum(column) for column in zip(*parts, strict=True))
    f1 = 2 * matched / (found + true) if found + true else 1.0
    return {"f1": round(f1, 4), "dream": int(found), "real": int(true)}
