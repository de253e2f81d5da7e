"""Training batches: random crops of frames for the tokenizer, clips of cached latents for the dynamics."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from world_model.data.episodes import Episode, list_episodes, read_episode
from world_model.data.remembered import Held, Remembered
from world_model.place import HISTORY
from world_model.recall import Lens
from world_model.types import DataError

T = TypeVar("T")
TRIED = 4
"""Places from which a clip is chosen for what it shows."""


def load_split(root: Path, split: str) -> list[Episode]:
    """All episodes of a split, memory-mapped."""
    return [read_episode(folder) for folder in list_episodes(root, split)]


class FrameSampler:
    """Random crops (B, h, w, 3) uint8 of random frames. The crop keeps to the latent grid of 16 pixels."""

    def __init__(self, episodes: list[Episode]) -> None:
        self._episodes = episodes
        self._ends = np.cumsum([len(e.frames) for e in episodes])

    def __call__(self, rng: np.random.Generator, batch: int, crop: tuple[int, int]) -> NDArray[np.uint8]:
        return self.lively(rng, batch, crop)[0]

    def lively(
        self, rng: np.random.Generator, batch: int, crop: tuple[int, int], view: int | None = None
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """The crops, and where in them `lively` is (B, h, w)."""
        picks = rng.integers(0, self._ends[-1], batch)
        pairs = [self._crop(rng, int(i), crop, view) for i in picks]
        return np.stack([frame for frame, _ in pairs]), np.stack([mask for _, mask in pairs])

    def _crop(
        self, rng: np.random.Generator, index: int, crop: tuple[int, int], view: int | None
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        which = int(np.searchsorted(self._ends, index, side="right"))
        tick = int(index - (self._ends[which - 1] if which else 0))
        frame, mask = self._episodes[which].frames[tick], lively(self._episodes[which], tick, view)
        top, left = (
            16 * int(rng.integers(0, (s - c) // 16 + 1)) for s, c in zip(frame.shape, crop, strict=False)
        )
        part = slice(top, top + crop[0]), slice(left, left + crop[1])
        return frame[part], mask[part]


def lively(episode: Episode, tick: int, view: int | None = None) -> NDArray[np.bool_]:
    """(H, W), True within the boxes of the things that a frame shows, where the episode tells them, and in
    the rows of a status bar from `view` on."""
    mask = np.zeros(episode.frames.shape[1:3], bool)
    if view is not None:
        mask[view:] = True
    if episode.labels is not None:
        for kind, x, y, width, height in np.asarray(episode.labels[tick]).tolist():
            if kind:
                mask[max(0, y) : max(0, y + height), max(0, x) : max(0, x + width)] = True
    return mask


def boxed_area(episode: Episode, tick: int) -> int:
    """Pixels in the boxes around the things that a frame shows, overlaps counted twice; 0 without boxes."""
    if episode.labels is None:
        return 0
    boxes = np.asarray(episode.labels[tick], np.int64)
    return int((boxes[:, 3] * boxes[:, 4])[boxes[:, 0] > 0].sum())


@dataclass(frozen=True)
class Clips:
    """A batch of clips. z: (B, T + 1, C, h, w); act, phase: (B, T) int64; pose: (B, T + 1, 3) of
    normalised x, y and heading in radians, or None; past: (B, K, C, h, w), frames of the same episode
    that lie before the clip's end and serve as keyframes, with age (B, K) in ticks at the clip's middle and
    pose (B, K, 3); before: (B, 3), the pose a tick before the clip (its own first pose where there is none);
    history: (B, HISTORY) actions before the clip, newest last, -1 for none; held: what a world that recalls
    would look at; lively: (B, T + 1, h, w), which part of each cell the things that move cover, or None."""

    z: Tensor
    act: Tensor
    phase: Tensor
    pose: Tensor | None
    past: Tensor
    past_age: Tensor
    past_pose: Tensor | None
    before: Tensor
    history: Tensor
    held: Held | None = None
    lively: Tensor | None = None

    def to(self, device: torch.device | str) -> Clips:
        moved: dict[str, Any] = {
            k: v.to(device) if isinstance(v, Tensor | Held) else v for k, v in vars(self).items()
        }
        return Clips(**moved)


class Recall(NamedTuple):
    """How a world that recalls looks back: how its pictures are taken, its bank's size, how many keyframes
    are looked at, and how many of those that are taken in during a clip."""

    lens: Lens
    aspect: float
    size: int
    looked: int = 8
    later: int = 4


class LatentDataset:
    """Latents of every frame in memory as float16, with actions, phases and poses beside them."""

    def __init__(
        self,
        episodes: list[Episode],
        latents: list[NDArray[np.float16]],
        pose_origin: tuple[float, float],
        pose_scale: float,
    ) -> None:
        self.episodes = episodes
        self.latents = latents
        self._origin = np.array([*pose_origin, 0.0], np.float32)
        self._scale = np.array([pose_scale, pose_scale, 1.0], np.float32)
        self._recall: Recall | None = None

    def remember(self, recall: Recall) -> None:
        """From now on clips come with what a world that recalls would hold."""
        poses = [p for p in map(self.pose, range(len(self.episodes))) if p is not None]
        scale = float(self._scale[0])
        self.remembered = Remembered(self.episodes, poses, self.latents, scale, recall.size)
        self._recall = recall

    @property
    def frame_of_reference(self) -> tuple[NDArray[np.float32], float]:
        """Centre (2,) and half extent of the map in the units of the source."""
        return self._origin[:2], float(self._scale[0])

    def held(
        self,
        places: list[tuple[int, int]],
        ticks: int,
        pictures: bool = True,
        beyond: list[float] | None = None,
    ) -> Held | None:
        """What would be looked at in the clips that start at (episode, tick); None in a world with a map.

        Without `pictures` it serves to feel for walls. beyond: half extents of each clip's end within which
        nothing was held, see `Remembered.held`.
        """
        recall = self._recall
        if recall is None:
            return None
        how = (recall.lens, recall.aspect, recall.looked, recall.later)
        return self.remembered.held(places, ticks, *how, pictures, beyond)

    def pose(self, index: int) -> NDArray[np.float32] | None:
        """Normalised pose (T + 1, 3) of an episode."""
        pose = self.episodes[index].pose
        return None if pose is None else ((pose - self._origin) / self._scale).astype(np.float32)

    def depth(self, episode: Episode, tick: int) -> NDArray[np.float32]:
        """Depth (H / 4, W / 4) of a frame in half extents of the map."""
        assert episode.depth is not None, "this source tells no depth"
        return (episode.depth[tick].astype(np.float32) / self._scale[0]).astype(np.float32)

    def sample(self, rng: np.random.Generator, batch: int, ticks: int, keyframes: int) -> Clips:
        """Random clips of `ticks` transitions from random episodes."""
        return self.clips(self.places(rng, batch, ticks), ticks, keyframes, rng)

    def places(self, rng: np.random.Generator, batch: int, ticks: int) -> list[tuple[int, int]]:
        """Where random clips of `ticks` transitions start: (episode, tick).

        Where a source tells boxes every second clip is the fullest of TRIED at its middle: what is to be
        learned of things that move is learned from those near by.
        """
        weights = np.array([max(0, len(e) - ticks) for e in self.episodes], np.float64)
        weights /= weights.sum()
        places = []
        for number in range(batch):
            boxed = number % 2 and self.episodes[0].labels is not None
            tried = [
                (int(i), int(rng.integers(0, len(self.episodes[i]) - ticks + 1)))
                for i in rng.choice(len(self.episodes), TRIED if boxed else 1, p=weights)
            ]
            places.append(max(tried, key=lambda at: boxed_area(self.episodes[at[0]], at[1] + ticks // 2)))
        return places

    def clips(
        self, places: list[tuple[int, int]], ticks: int, keyframes: int, rng: np.random.Generator
    ) -> Clips:
        """The clips that start at (episode, tick)."""
        z = np.stack([self.latents[i][s : s + ticks + 1] for i, s in places])
        act = np.stack([self.episodes[i].actions[s : s + ticks] for i, s in places])
        phase = np.stack([self.episodes[i].phases[s : s + ticks] for i, s in places])
        poses = [self.pose(i) for i, _ in places]
        pose = self.path(places, ticks)
        before = torch.zeros(len(places), 3)
        if pose is not None:
            before = torch.from_numpy(
                np.stack([p[max(0, s - 1)] for p, (_, s) in zip(poses, places, strict=True) if p is not None])
            )
        chosen = [self._past(i, s, ticks, keyframes, rng) for i, s in places]
        past = np.stack([self.latents[i][c] for (i, _), c in zip(places, chosen, strict=True)])
        age = np.stack([s + ticks // 2 - c for (_, s), c in zip(places, chosen, strict=True)])
        past_pose = None
        if pose is not None:
            past_pose = torch.from_numpy(
                np.stack([p[c] for p, c in zip(poses, chosen, strict=True) if p is not None])
            )
        return Clips(
            torch.from_numpy(z).float(),
            torch.from_numpy(act.astype(np.int64)),
            torch.from_numpy(phase.astype(np.int64)),
            pose,
            torch.from_numpy(past).float(),
            torch.from_numpy(age).float().clamp(min=0),
            past_pose,
            before,
            torch.from_numpy(np.stack([action_history(self.episodes[i].actions, s) for i, s in places])),
            self.held(places, ticks),
            self.lively(places, ticks),
        )

    def path(self, places: list[tuple[int, int]], ticks: int) -> Tensor | None:
        """Normalised poses (B, ticks + 1, 3) from each (episode, tick) on, where the source tells them."""
        poses = [(self.pose(i), s) for i, s in places]
        known = [p[s : s + ticks + 1] for p, s in poses if p is not None]
        return torch.from_numpy(np.stack(known)) if known else None

    def lively(self, places: list[tuple[int, int]], ticks: int) -> Tensor | None:
        """Which part of each cell things that move cover (B, T + 1, h, w), where the source tells it."""
        if self.episodes[places[0][0]].labels is None:
            return None
        rows, columns = self.latents[0].shape[-2:]
        masks = [lively(self.episodes[i], t) for i, s in places for t in range(s, s + ticks + 1)]
        cells = np.stack(masks).reshape(len(places), ticks + 1, rows, 16, columns, 16)
        return torch.from_numpy(cells.mean((3, 5), dtype=np.float32))

    def _past(
        self, episode: int, start: int, ticks: int, count: int, rng: np.random.Generator
    ) -> NDArray[np.int64]:
        """Frames of the past that look most like what the clip will see: what a good bank would offer.

        A candidate set is drawn from the episode before the clip's start, and the nearest in latent to
        a few random frames of the clip are taken. An early clip has no past: its own start fills in.
        """
        if not count:
            return np.zeros(0, np.int64)
        z = self.latents[episode]
        candidates = rng.integers(0, max(1, start + 1), 24)
        wanted = rng.integers(start, start + ticks + 1, count)
        chosen: NDArray[np.int64] = candidates[_nearest(z[candidates], z[wanted])]
        return chosen


def action_history(actions: NDArray[np.int16], start: int) -> NDArray[np.int64]:
    """The HISTORY actions before `start`, -1 where the episode had not begun."""
    taken = actions[max(0, start - HISTORY) : start].astype(np.int64)
    return np.concatenate([np.full(HISTORY - len(taken), -1, np.int64), taken])


def _nearest(candidates: NDArray[np.float16], wanted: NDArray[np.float16]) -> NDArray[np.int64]:
    a = candidates.reshape(len(candidates), -1).astype(np.float32)
    b = wanted.reshape(len(wanted), -1).astype(np.float32)
    distance = (b**2).sum(1)[:, None] - 2 * b @ a.T + (a**2).sum(1)[None]
    return np.argmin(distance, axis=1)


def cached_latents(
    episodes: list[Episode],
    folders: list[Path],
    cache: Path,
    key: str,
    encode: Callable[[NDArray[np.uint8]], NDArray[np.float16]],
    progress: Callable[[int], None] = lambda _: None,
) -> list[NDArray[np.float16]]:
    """Latents (T + 1, C, h, w) of each episode, encoded once and kept in `cache` under `key` and what tells
    these files from others of the same names: data that is collected again is encoded again."""
    digest = hashlib.sha256(json.dumps([key, [_identity(f) for f in folders]]).encode()).hexdigest()[:12]
    folder = cache / f"latents-{folders[0].parent.name}-{digest}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        result = []
        for episode, source in zip(episodes, folders, strict=True):
            path = folder / f"{source.name}.npy"
            if not path.exists():
                partial = path.with_suffix(".partial.npy")
                np.save(partial, encode(episode.frames), allow_pickle=False)
                partial.replace(path)
            result.append(np.load(path, allow_pickle=False))
            progress(len(episode.frames))
        return result
    except OSError as err:
        raise DataError(f"cannot write latents to {folder}: {err.strerror}; free some space") from err


def _identity(folder: Path) -> list[str | int]:
    frames = (folder / "frames.npy").stat()
    return [folder.name, frames.st_size, frames.st_mtime_ns]


class Prefetcher(Generic[T]):
    """Makes batches ahead in a thread. Batch n depends on (seed, n) alone, so a resumed run sees the
    batches that an unbroken one would have seen."""

    def __init__(
        self, make: Callable[[np.random.Generator], T], seed: int, first: int, depth: int = 2
    ) -> None:
        self._queue: Queue[T | BaseException] = Queue(depth)
        self._stop = threading.Event()

        def work() -> None:
            index = first
            while not self._stop.is_set():
                try:
                    item: T | BaseException = make(np.random.default_rng([seed, index]))
                except BaseException as err:
                    item = err
                self._queue.put(item)
                index += 1

        self._thread = threading.Thread(target=work, daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[T]:
        while True:
            item = self._queue.get()
            if isinstance(item, BaseException):
                raise item
            yield item

    def close(self) -> None:
        """Ends the thread: one that computes while the program ends would abort it."""
        self._stop.set()
        while self._thread.is_alive():
            while not self._queue.empty():
                self._queue.get_nowait()
            self._thread.join(0.05)
