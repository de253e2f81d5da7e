"""Turns a finished run into a world folder: weights, description, scenes, thumbnail, card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from world_model.config import WorldConfig
from world_model.data.episodes import Episode, list_episodes, read_episode
from world_model.evaluation.metrics import laplacian_energy
from world_model.scenes import Scene, save_scene
from world_model.training.card import EVAL_NAME, read_metrics, write_card
from world_model.training.pictures import write_png
from world_model.training.run import ORDER, SOUND, foreign_stages, load_run
from world_model.types import DataError
from world_model.world import save_world

SCENE_TICKS, REMEMBERED_TICKS = 32, 96
"""Length of a scene, and of one in a world that recalls: what it shows is all that such a dream knows."""
REMEMBERED_SCENES = 4


def publish(run: Path, data: Path, folder: Path, scenes: int = 8) -> None:
    """Writes the world of a run to `folder`. Scenes come from held-out episodes: the test split's, if any.

    Raises DataError for a run that lacks a stage which its world needs, or without a scene's length of play.
    """
    world = load_run(run)
    missing = [s for s in needed_stages(world.config) if not (run / f"{s}.safetensors").exists()]
    if missing:
        raise DataError(f"{run} is not finished: train --stage {missing[0]} first")
    ticks, scenes = (
        (REMEMBERED_TICKS, min(scenes, REMEMBERED_SCENES))
        if world.config.dynamics.recall
        else (SCENE_TICKS, scenes)
    )
    split = "test" if (data / "test").is_dir() else "val"
    episodes = [e for e in map(read_episode, list_episodes(data, split)) if len(e) >= ticks]
    if not episodes:
        raise DataError(f"{data}: no held-out episode has {ticks} ticks to start a dream from")
    header = episodes[0].header
    provenance = {"source": header["source"], "stages": _costs(run)}
    save_world(folder, world, header["licence"], provenance, scores={})
    write_card(folder, world.config, run, provenance)
    (folder / EVAL_NAME).unlink(missing_ok=True)  # it was of other weights
    chosen = choose_scenes(episodes, scenes, ticks)
    for old in (folder / "scenes").glob("*"):
        old.unlink()
    for index, (episode, start) in enumerate(chosen):
        frames = np.array(episode.frames[start : start + ticks])
        actions = np.array(episode.actions[start : start + ticks - 1], np.int64)
        name = f"scene{index + 1}"
        save_scene(folder, Scene(name, frames, actions, int(episode.phases[start])))
        write_png(folder / "scenes" / f"{name}.png", np.ascontiguousarray(frames[-1, ::2, ::2]))
    write_png(folder / "thumbnail.png", np.array(chosen[0][0].frames[chosen[0][1] + ticks - 1]))


def choose_scenes(episodes: list[Episode], count: int, ticks: int) -> list[tuple[Episode, int]]:
    """Starts with something to see, far from each other: of many candidates, greedily the one whose last
    picture differs most from those already chosen, among the richest half by edges."""
    rng = np.random.default_rng(0)
    candidates = [(e, int(s)) for e in episodes for s in rng.integers(0, max(1, len(e) - ticks), 12)]
    last = [np.array(e.frames[s + ticks - 1]) for e, s in candidates]
    richness = np.array([laplacian_energy(image) for image in last])
    keep = np.argsort(richness)[len(richness) // 2 : -len(richness) // 20 or None]
    small = np.stack([last[i][4::8, 4::8].astype(np.float32).ravel() for i in keep])
    chosen = [int(np.argmin(np.abs(richness[keep] - np.median(richness[keep]))))]
    while len(chosen) < min(count, len(keep)):
        distance = np.min([np.abs(small - small[c]).mean(1) for c in chosen], axis=0)
        chosen.append(int(np.argmax(distance)))
    return [candidates[keep[c]] for c in chosen]


def needed_stages(config: WorldConfig) -> tuple[str, ...]:
    """Stages without which the world of a run would hold untrained weights."""
    optional = {"rollout", "decoder"} | foreign_stages(config)
    return tuple(s for s in ORDER if s not in optional) + (() if config.audio is None else SOUND)


def _costs(run: Path) -> dict[str, Any]:
    """Steps, seconds and last metrics of each stage, from metrics.jsonl."""
    last: dict[str, dict[str, Any]] = {}
    for record in read_metrics(run):
        if "loss" in record:
            last[record["stage"]] = record
    return {name: last[name] for name in (*ORDER, *SOUND) if name in last}
