"""Turns a finished run into a world folder: weights, description, scenes, thumbnail, card."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from world_model.config import WorldConfig
from world_model.data.dataset import boxed_area
from world_model.data.episodes import Episode, list_episodes, read_episode
from world_model.dream import DreamEngine
from world_model.evaluation.metrics import laplacian_energy
from world_model.model import WorldModel
from world_model.precision import native_dtype
from world_model.scenes import Past, Scene, save_scene
from world_model.training.card import EVAL_NAME, read_metrics, write_card
from world_model.training.gauges_stage import numbers
from world_model.training.pictures import write_png
from world_model.training.run import ORDER, SOUND, foreign_stages, load_run
from world_model.types import DataError
from world_model.world import save_world

SCENE_TICKS, REMEMBERED_TICKS = 32, 600
"""Length of a scene, and, in a world that recalls, of the walk that it ends: all that such a dream knows."""
REMEMBERED_SCENES = 4
HALE = 60
"""Of a number without which a dream is over, as health, a scene begins with as much."""


def publish(run: Path, data: Path, folder: Path, scenes: int = 8) -> None:
    """Writes the world of a run to `folder`. Scenes come from held-out episodes: the test split's, if any.

    Raises DataError for a run that lacks a stage which its world needs, or without a scene's length of play.
    """
    world = load_run(run)
    missing = [s for s in needed_stages(world.config) if not (run / f"{s}.safetensors").exists()]
    if missing:
        raise DataError(f"{run} is not finished: train --stage {missing[0]} first")
    split = "test" if (data / "test").is_dir() else "val"
    episodes = [read_episode(folder) for folder in list_episodes(data, split)]
    ticks = SCENE_TICKS
    if world.config.dynamics.recall:
        scenes = min(scenes, REMEMBERED_SCENES)
        ticks = max(ticks, min(REMEMBERED_TICKS, max(map(len, episodes), default=0)))
    episodes = [e for e in episodes if len(e) >= ticks]
    if not episodes:
        raise DataError(f"{data}: no held-out episode has {ticks} ticks to start a dream from")
    header = episodes[0].header
    provenance = {"source": header["source"], "stages": _costs(run)}
    save_world(folder, world, header["licence"], provenance, scores={})
    write_card(folder, world.config, run, provenance)
    (folder / EVAL_NAME).unlink(missing_ok=True)  # it was of other weights
    write_scenes(world, episodes, folder, scenes, ticks)


def write_scenes(world: WorldModel, episodes: list[Episode], folder: Path, count: int, ticks: int) -> None:
    """Scenes of the episodes in place of those that the world's folder has; the first is its thumbnail."""
    chosen = choose_scenes(episodes, count, ticks, partial(_hale, world))
    for old in (folder / "scenes").glob("*"):
        old.unlink()
    for index, (episode, start) in enumerate(chosen):
        scene = make_scene(world, episode, start, ticks, f"scene{index + 1}")
        save_scene(folder, scene)
        write_png(folder / "scenes" / f"{scene.name}.png", np.ascontiguousarray(scene.frames[-1, ::2, ::2]))
    write_png(folder / "thumbnail.png", np.array(chosen[0][0].frames[chosen[0][1] + ticks - 1]))


def make_scene(world: WorldModel, episode: Episode, start: int, ticks: int, name: str) -> Scene:
    """The scene of `ticks` frames from `start`. In a world that recalls all but the last of them are a past:
    what it makes of them is kept, and not they themselves."""

    def cut(first: int, count: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        frames = np.array(episode.frames[first : first + count])
        return frames, np.array(episode.actions[first : first + count - 1], np.int64)

    last = start + ticks - SCENE_TICKS - 1
    if not world.config.dynamics.recall or last <= start:
        return Scene(name, *cut(start, ticks), int(episode.phases[start]))
    engine = DreamEngine(world.eval(), native_dtype(next(world.parameters()).device.type))
    frames, actions = cut(start, last - start + 1)
    phase = np.array([episode.phases[start]])
    with torch.no_grad():
        walked = engine.start(engine.encode(frames)[None], actions[None], phase, obs=frames[None])
    bank, place = walked.bank, walked.place
    held = bank.filled[0] & (bank.born[0] < walked.tick)
    born = bank.born[0, held].cpu().numpy()
    past = Past(
        walked.tick,
        frames[born],
        bank.pose[0, held].float().cpu().numpy(),
        born,
        place.pose[0].float().cpu().numpy(),
        place.motion[0].float().cpu().numpy(),
        place.history[0].cpu().numpy(),
    )
    return Scene(name, *cut(last, SCENE_TICKS + 1), int(episode.phases[last]), past)


def _hale(world: WorldModel, episode: Episode, tick: int) -> bool:
    """Whether a dream that begins there is not over at once: of what ends it, as health, there is enough."""
    if world.gauges is None:
        return True
    ends = world.gauges.ends.cpu().numpy() > 0
    return bool((numbers(episode, world.gauges.config)[tick, ends] >= HALE).all())


def choose_scenes(
    episodes: list[Episode],
    count: int,
    ticks: int,
    fit: Callable[[Episode, int], bool] = lambda episode, tick: True,
) -> list[tuple[Episode, int]]:
    """Starts with something to see, far from each other: of many candidates, greedily the one whose last
    picture differs most from those already chosen, among the richest half: by edges, or, where episodes tell
    boxes, by how much of the picture is in one. Only such as are `fit` at their last tick, if any are."""
    rng = np.random.default_rng(0)
    candidates = [(e, int(s)) for e in episodes for s in rng.integers(0, max(1, len(e) - ticks), 12)]
    candidates = [(e, s) for e, s in candidates if fit(e, s + ticks - 1)] or candidates
    last = [np.array(e.frames[s + ticks - 1]) for e, s in candidates]
    richness = np.array(
        [
            laplacian_energy(image) if e.labels is None else boxed_area(e, s + ticks - 1)
            for image, (e, s) in zip(last, candidates, strict=True)
        ]
    )
    keep = np.argsort(richness)[len(richness) // 2 : -len(richness) // 20 or None]
    small = np.stack([last[i][4::8, 4::8].astype(np.float32).ravel() for i in keep])
    chosen = [int(np.argmin(np.abs(richness[keep] - np.median(richness[keep]))))]
    while len(chosen) < min(count, len(keep)):
        distance = np.min([np.abs(small - small[c]).mean(1) for c in chosen], axis=0)
        chosen.append(int(np.argmax(distance)))
    return [candidates[keep[c]] for c in chosen]


def needed_stages(config: WorldConfig) -> tuple[str, ...]:
    """Stages without which the world of a run would hold untrained weights."""
    optional = {"rollout", "decoder", "light", "grain", "feel"} | foreign_stages(config)
    return tuple(s for s in ORDER if s not in optional) + (() if config.audio is None else SOUND)


def _costs(run: Path) -> dict[str, Any]:
    """Steps, seconds and last metrics of each stage, from metrics.jsonl."""
    last: dict[str, dict[str, Any]] = {}
    for record in read_metrics(run):
        if "loss" in record:
            last[record["stage"]] = record
    return {name: last[name] for name in (*ORDER, *SOUND) if name in last}
