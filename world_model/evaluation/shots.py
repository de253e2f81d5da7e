"""Shots as they are seen and heard: the player's own, tick by tick, against those that the game tells.

In a game with other loud things not every bang is the player's shot, so even real pictures and real sound
do not score 1. What they score, what the real sound scores that went through the world's codec, and what the
flashes and bangs of other windows score stand beside the dream's figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from world_model.audio import AudioModel, to_int16
from world_model.data.fight_report import shots_of
from world_model.evaluation import events
from world_model.evaluation.events import Events
from world_model.evaluation.scenery import AMMO, Stretch, told
from world_model.evaluation.sheets import pick
from world_model.evaluation.stats import mean_interval, ratio_interval
from world_model.spectrum import spectrogram
from world_model.training.pictures import write_png

SOUND_RATE = 22050
HEARD_TICKS = 125
"""Five seconds of sound are drawn of a window."""
OTHERS = 3
"""With the onsets of so many other windows each window is compared, for what chance gives."""
REACH = 12


def true_shots(clip: Any, headers: dict[str, dict[str, Any]]) -> Events:
    """(ticks,), the first of which is tick 1: whether the player's ammunition became one less."""
    return shots_of(told(clip, headers, AMMO))


def flash_figures(dreamed: list[Stretch], real: list[Stretch], shots: list[Events], names: list[str]) -> Any:
    """F1 of flashes against the player's shots."""
    seen, true = [s.flashes() for s in dreamed], [s.flashes() for s in real]
    return figures({"dream": seen, "real": true}, shots, names) | _counts(seen, true, shots)


def sound_figures(
    dreamed: list[Stretch],
    real: list[Stretch],
    shots: list[Events],
    names: list[str],
    codec: AudioModel | None = None,
) -> dict[str, Any]:
    """F1 of bangs, log-mel distance and the ticks from flash to bang, of stretches that all have sound."""
    pairs = list(zip(dreamed, real, strict=True))
    scores = [events.log_mel_scores(np.stack(a.sound), np.stack(b.sound)) for a, b in pairs]
    heard, true = [s.bangs() for s in dreamed], [s.bangs() for s in real]
    found = {"dream": heard, "real": true}
    if codec is not None:
        found["codec"] = [events.sound_onsets(through(codec, np.stack(s.sound))) for s in real]
    return {
        "clips": len(dreamed),
        "bang_f1": figures(found, shots, names) | _counts(heard, true, shots),
        "log_mel": {k: mean_interval([s[k] for s in scores], names) for k in scores[0]},
        "flash_to_bang": {
            who: offset([s.flashes() for s in stretches], onsets)
            for who, stretches, onsets in (("dream", dreamed, heard), ("real", real, true))
        },
        "per_clip": {
            "bang_f1": [events.onset_f1(a, b) for a, b in zip(heard, shots, strict=True)],
            "log_mel": [round(s["dream"], 4) for s in scores],
        },
    }


def figures(found: dict[str, list[Events]], shots: list[Events], names: list[str]) -> dict[str, Any]:
    """F1 with its interval for each row of onsets, and as `chance` for the real ones of other windows."""
    rows: dict[str, Any] = {who: pooled(onsets, shots, names) for who, onsets in found.items()}
    real, count = found["real"], len(shots)
    shifts = range(1, min(OTHERS, count - 1) + 1)
    others = [_fitted(real[(i + shift) % count], len(shots[i])) for shift in shifts for i in range(count)]
    rows["chance"] = pooled(others, shots * len(shifts), names * len(shifts)) if others else None
    return rows


def pooled(found: list[Events], true: list[Events], names: Sequence[str]) -> dict[str, Any] | None:
    """F1 over all stretches together, since one without events says nothing; None where none has any."""
    both = [events.matches(a, b) * 2 for a, b in zip(found, true, strict=True)]
    total = [int(a.sum() + b.sum()) for a, b in zip(found, true, strict=True)]
    return ratio_interval(both, total, names) if sum(total) else None


def offset(seen: list[Events], heard: list[Events]) -> dict[str, Any] | None:
    """From flash to bang, all stretches together; None where they are unrelated (`events.Offset`)."""
    gap = np.zeros(REACH, bool)  # so that the end of one does not meet the beginning of the next
    rows = [np.concatenate([part for one in kind for part in (one, gap)]) for kind in (seen, heard)]
    found = events.picture_sound_offset(rows[0], rows[1], REACH)
    return None if found is None else found._asdict()


@torch.no_grad()
def through(codec: AudioModel, sound: NDArray[np.int16]) -> NDArray[np.int16]:
    """Sound (T, samples, channels) encoded and decoded: as late as the codec makes it."""
    config = codec.codec.config
    line = torch.from_numpy(sound)[None]
    frames = codec.codec.frames(line, line.new_zeros(1, config.overlap, line.shape[-1]))
    decoded = codec.codec.decode(codec.codec.encode(frames.flatten(0, 1))).unflatten(0, frames.shape[:2])
    joined, _ = codec.codec.join(decoded, decoded.new_zeros(1, line.shape[-1], config.overlap))
    return np.asarray(to_int16(joined[0].T.unflatten(0, sound.shape[:2])).numpy()[:, : config.samples])


def draw_sounds(path: Path, dreamed: list[Stretch], real: list[Stretch], shots: list[Events]) -> None:
    """Writes spectrograms of the best, a middling and the worst window by F1, among those with events."""
    f1 = [events.onset_f1(a.bangs(), b) for a, b in zip(dreamed, shots, strict=True)]
    loud = [i for i, score in enumerate(f1) if score is not None]
    if not loud:
        return
    strips: list[NDArray[np.uint8]] = []
    for i in pick([f1[i] or 0.0 for i in loud]).values():
        for stretch in (real[loud[i]], dreamed[loud[i]]):
            line = np.concatenate(stretch.sound[:HEARD_TICKS]).astype(np.float32).mean(1) / events.FULL_SCALE
            image = spectrogram(torch.from_numpy(line), SOUND_RATE)
            strips.append(np.pad(image, ((0, 3), (0, 0), (0, 0)), constant_values=60))
        strips.append(np.full((6, *strips[0].shape[1:]), 255, np.uint8))
    write_png(path, np.concatenate(strips[:-1]))


def _counts(dreamed: list[Events], real: list[Events], shots: list[Events]) -> dict[str, Any]:
    kinds = {"dream": dreamed, "real": real, "shots": shots}
    return {"counts": {who: int(sum(e.sum() for e in each)) for who, each in kinds.items()}}


def _fitted(onsets: Events, ticks: int) -> Events:
    return np.resize(onsets, ticks)
