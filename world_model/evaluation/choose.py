"""Which dreamer is evaluated, by name: a world, a baseline, an ablated world or the real game."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from world_model.batch_dream import BatchDream
from world_model.data.episodes import list_episodes, read_episode
from world_model.data.sources import make_source
from world_model.evaluation.baselines import CopySeed, MeanFrame, Persistence
from world_model.evaluation.protocol import Dreamer
from world_model.evaluation.real import SourceDreamer
from world_model.evaluation.worlds import PARTS, AblatedDream, CheckedDream
from world_model.types import DataError

BASELINES = ("copy-seed", "persistence", "mean-frame", *PARTS)
MEAN_STRIDE = 100
"""The mean frame is over every hundredth training frame."""

Load = Callable[[str], BatchDream]
"""Loads a world by name or path; `world_model.world.batch_dream`, which stands above this module."""


def choose_dreamer(name: str, load: Load, root: Path) -> Dreamer:
    """The dreamer of a name.

    A world's name or folder; `source:NAME`, the real game itself; `baseline:copy-seed`,
    `baseline:persistence`, `baseline:mean-frame` (of the training split of `root`, or of each context);
    `baseline:no-memory:WORLD` and the other ablations (`worlds.PARTS`) of a world, `rooms` if none is
    named. Raises ValueError for an unknown baseline, DataError for a world of another game than `root`,
    WorldError and SourceError as loading does.
    """
    kind, _, rest = name.partition(":")
    if kind == "source" and rest:
        make_source(rest).close()  # a missing game is told before anything is measured
        return SourceDreamer(rest)
    if kind == "baseline":
        return _baseline(rest, load, root)
    whole = load_for(name, load, root)
    return CheckedDream(whole.engine, whole.name, whole.seed)


def load_for(name: str, load: Load, root: Path) -> BatchDream:
    """Loads a world that is to be measured on `root`. Raises DataError when it is of another game."""
    world = load(name)
    config, episode = world.engine.config, read_episode(list_episodes(root, "val")[0])
    own, recorded = [a.name for a in config.actions], list(episode.header.get("actions", ()))
    if own != recorded:
        raise DataError(
            f"{root} is of another game than the world {name}: its actions are {', '.join(recorded)}"
        )
    size = (config.tokenizer.height, config.tokenizer.width, 3)
    if episode.frames.shape[1:] != size:
        raise DataError(f"{root} has pictures of {episode.frames.shape[1:]}; the world {name} needs {size}")
    return world


def _baseline(name: str, load: Load, root: Path) -> Dreamer:
    part, _, world = name.partition(":")
    if part in PARTS:
        whole = load_for(world or "rooms", load, root)
        return AblatedDream(whole.engine, part, whole.name, whole.seed)
    if part not in BASELINES or world:
        raise ValueError(f"unknown baseline {name!r}; there are {', '.join(BASELINES)}")
    if part == "mean-frame":
        return MeanFrame(_training_frames(root))
    return CopySeed() if part == "copy-seed" else Persistence()


def _training_frames(root: Path) -> NDArray[np.uint8] | None:
    if not (root / "train").is_dir():
        return None
    episodes = [read_episode(folder) for folder in list_episodes(root, "train")]
    return np.concatenate([np.asarray(e.frames[::MEAN_STRIDE]) for e in episodes])
