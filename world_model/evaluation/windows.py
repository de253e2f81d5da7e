"""Which stretches of held-out play are measured: spread evenly, chosen by seed, never by the score."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from world_model.data.episodes import Episode, list_episodes, read_episode
from world_model.evaluation.protocol import Clip
from world_model.files import read_json
from world_model.types import DataError

CONTEXT = 32
"""Real frames shown before the dream begins."""

MOVED_UNITS = 1.0
MOVED_RADIANS = float(np.radians(1.0))
MOVED_LEVELS = 1.0
"""Without a pose: mean absolute change of the picture, of 255, that counts as moving."""

HORIZONS = (8, 32, 128)
"""A moving window moves for at least half of its first 8, 32 and 128 ticks and of all its ticks."""


@dataclass(frozen=True)
class HeldOut:
    """The held-out episodes of a data set."""

    names: tuple[str, ...]
    episodes: tuple[Episode, ...]

    @property
    def actions(self) -> tuple[str, ...]:
        """Names of the actions, by index."""
        return tuple(self.episodes[0].header.get("actions", ()))


def held_out(root: Path, split: str = "val") -> HeldOut:
    """Opens the held-out split.

    Raises DataError when there is none, when an episode is damaged, or when one of its seeds is among
    those of the training split too: then nothing is held out.
    """
    folders = list_episodes(root, split)
    data = HeldOut(tuple(f.name for f in folders), tuple(read_episode(f) for f in folders))
    if split != "train":
        shared = _seeds(e.header for e in data.episodes) & _seeds(_headers(root / "train"))
        if shared:
            which = ", ".join(map(str, sorted(shared)[:3]))
            raise DataError(
                f"{root}: the seed {which} is in train and in {split}, so nothing is held out; collect again"
            )
    return data


def _headers(folder: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.glob("ep_*/header.json")):
        yield read_json(path)


def _seeds(headers: Iterable[dict[str, Any]]) -> set[int]:
    return {h["seed"] for h in headers if isinstance(h.get("seed"), int)}


def windows(
    data: HeldOut, ticks: int, count: int, moving: bool, context: int = CONTEXT, seed: int = 0
) -> list[Clip]:
    """`count` clips of `context` frames and `ticks` ticks, spread evenly over the episodes.

    Each episode's possible starts are cut into as many equal parts as it owes clips; the seed draws one
    start from each part. With `moving` only starts of moving windows are possible: a tick moves when
    the position changes by more than one map unit or the heading by more than one degree; a window is
    moving when at least half of its first 8, 32, 128 (as far as it goes) and of all its imagined
    ticks move, and when its last pose differs from that of the last context frame. Raises DataError
    when no episode has such a window.
    """
    rng = np.random.default_rng(seed)
    starts = [_starts(episode, ticks, context, moving) for episode in data.episodes]
    owed = _share_out(count, [len(s) for s in starts])
    if not sum(owed):
        kind = "moving windows" if moving else "windows"
        raise DataError(f"no held-out episode has {kind} of {context} + {ticks} ticks; collect longer ones")
    clips = []
    for index, (possible, share) in enumerate(zip(starts, owed, strict=True)):
        for part in np.array_split(possible, share) if share else []:
            clips.append(_clip(data, index, int(rng.choice(part)), context, ticks))
    return clips


def moved(episode: Episode) -> NDArray[np.bool_]:
    """Whether each transition (T,) moved the player, by pose or, without one, by the picture."""
    return _moved(episode.frames, episode.pose)


def clip_moved(clip: Clip) -> NDArray[np.bool_]:
    """Whether each imagined tick (ticks,) of a clip moved the player."""
    return _moved(clip.frames, clip.pose)[clip.context - 1 :]


def _moved(frames: NDArray[np.uint8], pose: NDArray[np.float32] | None) -> NDArray[np.bool_]:
    if pose is None:
        return _picture_moved(frames)
    return _differs(pose[:-1], pose[1:])


def _differs(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Whether poses (N, 3) are more than a map unit or a degree apart."""
    step = b - a
    turn = np.abs(np.remainder(step[:, 2] + np.pi, 2 * np.pi) - np.pi)
    return np.asarray((np.hypot(step[:, 0], step[:, 1]) > MOVED_UNITS) | (turn > MOVED_RADIANS))


def _picture_moved(frames: NDArray[np.uint8]) -> NDArray[np.bool_]:
    small = np.asarray(frames[:, ::4, ::4]).astype(np.int16)
    return np.asarray(np.abs(np.diff(small, axis=0)).mean((1, 2, 3)) > MOVED_LEVELS)


def _starts(episode: Episode, ticks: int, context: int, moving: bool) -> NDArray[np.int64]:
    starts = np.arange(max(0, len(episode.frames) - context - ticks + 1))
    if not moving or not len(starts):
        return starts
    total = np.concatenate([[0], np.cumsum(moved(episode))])
    first = starts + context - 1  # index of the last context frame
    keep = np.ones(len(starts), bool)
    for horizon in sorted({h for h in HORIZONS if h < ticks} | {ticks}):
        keep &= total[first + horizon] - total[first] >= horizon / 2
    if episode.pose is not None:
        pose = np.asarray(episode.pose)
        keep &= _differs(pose[first], pose[first + ticks])
    return starts[keep]


def _share_out(count: int, room: list[int]) -> list[int]:
    """Rounds of one each, so that shares differ by at most one where there is room."""
    owed = [0] * len(room)
    while sum(owed) < min(count, sum(room)):
        for i, limit in enumerate(room):
            if owed[i] < limit and sum(owed) < count:
                owed[i] += 1
    return owed


def _clip(data: HeldOut, index: int, start: int, context: int, ticks: int) -> Clip:
    episode, stop = data.episodes[index], start + context + ticks
    return Clip(
        frames=episode.frames[start:stop],
        actions=np.asarray(episode.actions[start : stop - 1], np.int64),
        pose=None if episode.pose is None else np.asarray(episode.pose[start:stop]),
        phase=int(episode.phases[start]),
        context=context,
        episode=data.names[index],
        start=start,
        seed=episode.header.get("seed"),
        history=np.asarray(episode.actions[:start], np.int64),
        sound=None if episode.sound is None else episode.sound[start : stop - 1],
        labels=None if episode.labels is None else episode.labels[start:stop],
        variables=None if episode.variables is None else episode.variables[start:stop],
    )
