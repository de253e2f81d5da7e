"""Records episodes of a source with several processes. Deterministic by seed, resumable.

Every episode has a seed of its own, counted from the first seed of its split; an episode that is
already on disk is skipped, so a collection that was stopped goes on where it was.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from world_model.data.arena import ITEMS, MONSTERS
from world_model.data.episodes import SPLITS, Episode, read_episode, write_episode
from world_model.data.fight_report import fight_report
from world_model.data.fighters import Fighter
from world_model.data.mazes.source import NAMES as MAZES
from world_model.data.policies import CELL, Walker, cell_of
from world_model.data.revisits import RevisitingWalker
from world_model.data.sources import MapSource, Observation, Source, make_source
from world_model.types import DataError, SourceError

FREE_MARGIN = 2**30
"""Bytes that collecting leaves free on the disk."""


@dataclass(frozen=True)
class CollectConfig:
    """What to collect. `frames` counts the training split; the held-out splits come on top."""

    source: str
    frames: int
    out: Path
    seed: int = 0
    episode_ticks: int = 1200
    val_share: float = 0.1
    workers: int = 2
    sound: bool = True
    """Whether a game that has sound is recorded with it; that needs OpenAL."""


@dataclass(frozen=True)
class _Job:
    source: str
    split: str
    seed: int
    ticks: int
    folder: Path
    sound: bool


def collect(config: CollectConfig, progress: Callable[[int], None] = lambda _: None) -> dict[str, Any]:
    """Collects all splits and returns the coverage report, also written to `report.json`.

    `progress` is called with the number of frames that have been finished. Raises SourceError when the
    source is missing or its game broke off, and DataError when the disk is full or read-only; finished
    episodes stay.
    """
    _open(config.source, config.sound).close()  # a missing game is told before any process starts
    missing = sum(count - _present(config, split, count) for split, count in _counts(config).items())
    # Before a list is made that may be as long as it is absurd.
    _check_disk(config.out, missing * config.episode_ticks)
    jobs = _jobs(config)
    todo = [job for job in jobs if not job.folder.exists()]
    progress(sum(job.ticks for job in jobs) - sum(job.ticks for job in todo))
    context = multiprocessing.get_context("spawn")  # ViZDoom and torch do not survive a fork
    with ProcessPoolExecutor(max(1, config.workers), mp_context=context) as pool:
        futures = {pool.submit(_run, job): job for job in todo}
        try:
            for future in as_completed(futures):
                future.result()
                progress(futures[future].ticks)
        except BrokenProcessPool as err:
            raise SourceError(
                "a process that played the game broke off; finished episodes stay, so run the same "
                "command again, with fewer --workers if it was killed for memory"
            ) from err
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    folders = [job.folder for job in jobs]
    report = coverage_report(folders) | fight_report(folders)
    (config.out / "report.json").write_text(json.dumps(report, indent=1))
    return report


def record_episode(source: Source, seed: int, ticks: int) -> Episode:
    """Plays one episode with a walker; it ends early when the source ends."""
    walker = _walker(source, seed)
    obs = source.reset(seed)
    first = obs
    steps: list[tuple[int, Observation]] = []
    for _ in range(ticks):
        action = walker.act(obs)
        obs = source.step(action)
        steps.append((action, obs))
        if obs.terminated or obs.truncated:
            break
    return _pack(source, seed, first, steps)


def coverage_report(folders: list[Path]) -> dict[str, Any]:
    """Cells visited, share of blocked ticks, shares of revisits and the action histogram.

    A cell is revisited when the walker comes back to it, a view when it also looks the same way as then,
    to an eighth of a turn, both 4 s or more later.
    """
    cells: Counter[Hashable] = Counter()
    maps: set[int] = set()
    actions: Counter[int] = Counter()
    blocked = forward = frames = revisits = views = 0
    names: list[str] = []
    for folder in folders:
        episode = read_episode(folder)
        names = episode.header["actions"]
        frames += len(episode.frames)
        actions.update(int(a) for a in episode.actions)
        if episode.pose is None:
            continue
        path = [cell_of(float(x), float(y)) for x, y, _ in episode.pose]
        place = episode.header["seed"] if "description" in episode.header else 0  # each seed may be a map
        maps.add(place)
        cells.update((place, cell) for cell in path)
        revisits += _revisits(path)
        eighths = np.round(episode.pose[:, 2] / (math.tau / 8)).astype(int) % 8
        views += _revisits(list(zip(path, eighths.tolist(), strict=True)))
        step = np.hypot(*np.diff(episode.pose[:, :2], axis=0).T)
        ahead = np.isin(episode.actions, [i for i, n in enumerate(names) if n.startswith("forward")])
        forward += int(ahead.sum())
        blocked += int((ahead & (step < 1.0)).sum())
    total = max(1, sum(actions.values()))
    return {
        "frames": frames,
        "episodes": len(folders),
        "maps": len(maps),
        "cells": len(cells),
        "cell_units": CELL,
        "least_visited": min(cells.values(), default=0),
        "blocked_share": round(blocked / max(1, forward), 4),
        "revisit_share": round(revisits / max(1, frames), 4),
        "review_share": round(views / max(1, frames), 4),
        "actions": {names[a]: round(n / total, 4) for a, n in sorted(actions.items())},
    }


def _walker(source: Source, seed: int) -> Walker:
    if isinstance(source, MapSource):
        return RevisitingWalker(source.actions, seed)
    if source.name == "arena":
        return Fighter(source.actions, seed, MONSTERS, ITEMS)
    return Walker(source.actions, seed)


def _revisits(path: Sequence[Hashable], gap: int = 100) -> int:
    """Ticks spent in a cell that was left at least `gap` ticks ago."""
    last: dict[Hashable, int] = {}
    again = 0
    for tick, cell in enumerate(path):
        again += cell in last and tick - last[cell] >= gap
        if cell not in last or tick - last[cell] < gap:
            last[cell] = tick if cell not in last or path[tick - 1] == cell else last[cell]
    return again


def _counts(config: CollectConfig) -> dict[str, int]:
    """Episodes of each split. Where every seed is another map, the maps that a world is shown with are kept
    apart from those that it is measured on while it is made."""
    train = math.ceil(config.frames / config.episode_ticks)
    held_out = max(1, math.ceil(train * config.val_share))
    counts = {"train": train, "val": held_out}
    return counts | {"test": held_out} if config.source in MAZES.values() else counts


def _present(config: CollectConfig, split: str, count: int) -> int:
    """How many of the first `count` episodes of a split are on disk already."""
    first = _folder(config, split, 0).name
    last = _folder(config, split, count - 1).name
    return sum(first <= folder.name <= last for folder in (config.out / split).glob("ep_" + "[0-9]" * 10))


def _jobs(config: CollectConfig) -> list[_Job]:
    return [
        _Job(
            config.source,
            split,
            SPLITS[split] + config.seed + i,
            config.episode_ticks,
            _folder(config, split, i),
            config.sound,
        )
        for split, count in _counts(config).items()
        for i in range(count)
    ]


def _folder(config: CollectConfig, split: str, index: int) -> Path:
    return config.out / split / f"ep_{SPLITS[split] + config.seed + index:010d}"


def _check_disk(out: Path, frames: int) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".write-test"
        probe.write_bytes(b"x")
        probe.unlink()
        stat = os.statvfs(out)
    except OSError as err:
        raise DataError(f"cannot write to {out}: {err.strerror}; choose another --out") from err
    free, need = stat.f_bavail * stat.f_frsize, frames * 256 * 160 * 3
    if need > free - FREE_MARGIN:
        raise DataError(
            f"{out} has {free / 2**30:.1f} GiB free and {need / 2**30:.1f} GiB are needed; use fewer --frames"
        )


_source: tuple[tuple[str, bool], Source] | None = None
"""The one game of this process, and what it was opened as."""


def _open(name: str, sound: bool) -> Source:
    return make_source(name) if sound else make_source(name, sound=False)


def _run(job: _Job) -> None:
    global _source
    wanted = (job.source, job.sound)
    if _source is None or _source[0] != wanted:
        if _source is not None:
            _source[1].close()
        _source = None  # where opening fails, what was closed must not be taken for open
        _source = wanted, _open(*wanted)
    write_episode(job.folder, record_episode(_source[1], job.seed, job.ticks))


def _pack(source: Source, seed: int, first: Observation, steps: list[tuple[int, Observation]]) -> Episode:
    observations = [first, *(obs for _, obs in steps)]
    poses = [obs.pose for obs in observations]
    sounds = [obs.sound for _, obs in steps]
    depths = [obs.depth for obs in observations]
    last = observations[-1]
    numbers = [obs.variables for obs in observations]
    kinds, labels = _pack_labels(observations)
    names, things = _pack_things(observations)
    header = {
        "source": source.name,
        "licence": source.licence,
        "seed": seed,
        "actions": [a.name for a in source.actions],
        "fps": source.fps,
        "phases": source.phases,
        "alignment": "actions[t] was taken after frames[t] and led to frames[t+1]",
        "terminated": last.terminated,
        "truncated": last.truncated,
        **({"labels": kinds} if kinds else {}),
        **({"things": names} if names else {}),
        **({"variables": list(told)} if (told := getattr(source, "variables", ())) else {}),
        **(source.facts if isinstance(source, MapSource) else {}),
    }
    return Episode(
        header,
        frames=np.stack([obs.image for obs in observations]),
        actions=np.array([action for action, _ in steps], np.int16),
        phases=np.array([(first.phase + i) % source.phases for i in range(len(steps))], np.uint8),
        pose=None if poses[0] is None else np.stack([p for p in poses if p is not None]),
        sound=None if not sounds or sounds[0] is None else np.stack([s for s in sounds if s is not None]),
        rewards=np.array([obs.reward for _, obs in steps], np.float32),
        depth=None if depths[0] is None else np.stack([d for d in depths if d is not None]),
        labels=labels,
        things=things,
        variables=None if numbers[0] is None else np.stack([n for n in numbers if n is not None]),
    )


def _pack_labels(observations: list[Observation]) -> tuple[list[str], NDArray[np.int16] | None]:
    """Names of all that was ever seen, and the boxes as `Episode.labels` has them, or None."""
    kinds = sorted({label.name for obs in observations for label in obs.labels})
    if not kinds:
        return [], None
    boxes = np.zeros((len(observations), max(len(obs.labels) for obs in observations), 5), np.int16)
    for row, obs in zip(boxes, observations, strict=True):
        for i, b in enumerate(obs.labels):
            row[i] = (kinds.index(b.name) + 1, b.x, b.y, b.width, b.height)
    return kinds, boxes


def _pack_things(observations: list[Observation]) -> tuple[list[str], NDArray[np.float32] | None]:
    """Names of all that ever was in the map, and where, as `Episode.things` has it, or None."""
    kinds = sorted({thing.name for obs in observations for thing in obs.things})
    if not kinds:
        return [], None
    told = np.zeros((len(observations), max(len(obs.things) for obs in observations), 5), np.float32)
    for row, obs in zip(told, observations, strict=True):
        for i, a in enumerate(obs.things):
            row[i] = (a.number + 1, kinds.index(a.name) + 1, a.x, a.y, a.z)
    return kinds, told
