"""How episodes are written for others. The formats of other projects are written by their own libraries.

A writer takes the episodes, a folder to make, and the name of the data set. Of an episode of T ticks:
`obs[t]` is what was seen before `act[t]`, and the last observation is what the last action led to. An
episode that the game did not end counts as truncated.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from world_model.data.episodes import Episode
from world_model.types import ReverieError

Write = Callable[[Sequence[Episode], Path, str], None]
ABOUT = "reverie.json"
"""Beside a data set: the headers of its episodes, with the names of the actions, the source, the licence."""


def npz() -> Write:
    """`episode_00000.npz` and so on: obs, act, reward, terminated, truncated, and what else there is."""
    return _write_npz


def lerobot() -> Write:
    """A LeRobotDataset with a row for each tick: observation.image (PNG, exact), action, next.reward,
    next.done at the last tick, observation.state (x, y, heading) where the game told it, and next.sound
    (samples, channels) where it sounds. The picture that the last action led to is left out.
    """
    try:
        from lerobot.datasets.lerobot_dataset import LeRobotDataset
    except ImportError as err:
        raise ReverieError(_missing("LeRobot", "lerobot", err)) from err

    def write(episodes: Sequence[Episode], folder: Path, name: str) -> None:
        height, width = episodes[0].frames.shape[1:3]
        features: dict[str, dict[str, Any]] = {
            "observation.image": {
                "dtype": "image",
                "shape": (height, width, 3),
                "names": ["height", "width", "channels"],
            },
            "action": {"dtype": "int64", "shape": (1,), "names": ["action"]},
            "next.reward": {"dtype": "float32", "shape": (1,), "names": None},
            "next.done": {"dtype": "bool", "shape": (1,), "names": None},
        }
        if all(episode.pose is not None for episode in episodes):
            names = ["x", "y", "heading"]
            features["observation.state"] = {"dtype": "float32", "shape": (3,), "names": names}
        sound = episodes[0].sound
        if sound is not None and all(episode.sound is not None for episode in episodes):
            names = ["sample", "channel"]
            features["next.sound"] = {"dtype": "int16", "shape": sound.shape[1:], "names": names}
        fps = int(episodes[0].header["fps"])
        data = LeRobotDataset.create(f"reverie/{_plain(name)}", fps, features, root=folder, use_videos=False)
        for episode in episodes:
            task = f"play {episode.header['source']}"
            for t in range(len(episode)):
                data.add_frame({k: v for k, v in _row(episode, t).items() if k in features} | {"task": task})
            data.save_episode()
        data.finalize()
        _write_about(episodes, folder)

    return write


def minari() -> Write:
    """A Minari data set in `data`: pictures uncompressed, as they were; pose and sound among the infos.

    `minari.load_dataset(name)` opens it where MINARI_DATASETS_PATH is the folder that holds it.
    """
    try:
        from gymnasium.spaces import Box, Discrete
        from minari import MinariDataset, __version__
        from minari.data_collector import EpisodeBuffer
        from minari.dataset.minari_storage import MinariStorage
    except ImportError as err:
        raise ReverieError(_missing("Minari", "minari", err)) from err

    def write(episodes: Sequence[Episode], folder: Path, name: str) -> None:
        first = episodes[0]
        (folder / "data").mkdir(parents=True)
        storage = MinariStorage.new(
            folder / "data",
            observation_space=Box(0, 255, first.frames.shape[1:], np.uint8),
            action_space=Discrete(len(first.header["actions"])),
            jpeg_encoding=False,
        )
        storage.update_metadata(
            {
                "dataset_id": _plain(name),
                "minari_version": str(__version__),
                "description": json.dumps([episode.header for episode in episodes]),
            }
        )
        for episode in episodes:
            storage.update_episodes([EpisodeBuffer(seed=_seed(episode), **_steps(episode))])
        MinariDataset(folder / "data")  # what cannot be opened again is no data set
        _write_about(episodes, folder)

    return write


FORMATS: dict[str, Callable[[], Write]] = {"npz": npz, "lerobot": lerobot, "minari": minari}


def _missing(library: str, extra: str, err: ImportError) -> str:
    return f"--to {extra} needs {library}: pip install 'reverie[{extra}]' ({err})"


def _write_npz(episodes: Sequence[Episode], folder: Path, name: str) -> None:
    folder.mkdir(parents=True)
    for number, episode in enumerate(episodes):
        terminated, truncated = _ends(episode)
        arrays: dict[str, NDArray[Any]] = {
            "obs": episode.frames,
            "act": episode.actions,
            "reward": episode.rewards,
            "terminated": terminated,
            "truncated": truncated,
            "action_names": np.array(episode.header["actions"]),
            "fps": np.array(episode.header["fps"]),
            "header": np.array(json.dumps(episode.header)),
        }
        if "phases" in episode.header:
            arrays["phase"] = episode.phases
        for key in ("pose", "sound", "depth"):
            value = getattr(episode, key, None)
            if value is not None:
                arrays[key] = value
        np.savez_compressed(folder / f"episode_{number:05d}.npz", **arrays)  # type: ignore[arg-type]


def _row(episode: Episode, t: int) -> dict[str, Any]:
    row: dict[str, Any] = {
        "observation.image": np.asarray(episode.frames[t]),
        "action": np.array([episode.actions[t]], np.int64),
        "next.reward": np.array([episode.rewards[t]], np.float32),
        "next.done": np.array([t == len(episode) - 1]),
    }
    if episode.pose is not None:
        row["observation.state"] = np.array(episode.pose[t], np.float32)
    if episode.sound is not None:
        row["next.sound"] = np.asarray(episode.sound[t])
    return row


def _steps(episode: Episode) -> dict[str, Any]:
    terminated, truncated = _ends(episode)
    return {
        "observations": episode.frames,
        "actions": episode.actions.astype(np.int64),
        "rewards": list(episode.rewards.astype(np.float64)),
        "terminations": list(terminated),
        "truncations": list(truncated),
        "infos": _infos(episode),
    }


def _infos(episode: Episode) -> dict[str, Any] | None:
    """What goes with each picture: the pose, and the sound that led to it (silence to the first)."""
    infos: dict[str, Any] = {}
    if episode.pose is not None:
        infos["pose"] = episode.pose
    if episode.sound is not None:
        infos["sound"] = np.concatenate((np.zeros_like(episode.sound[:1]), episode.sound))
    return infos or None


def _ends(episode: Episode) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """terminated and truncated (T,): one of them is true at the last tick."""
    terminated, truncated = np.zeros(len(episode), bool), np.zeros(len(episode), bool)
    ended = episode.header.get("terminated") is True
    terminated[-1:], truncated[-1:] = ended, not ended
    return terminated, truncated


def _seed(episode: Episode) -> int | None:
    seed = episode.header.get("seed")
    return seed if isinstance(seed, int) else None


def _plain(name: str) -> str:
    """A name that a data set's identifier may have."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-") or "rollouts"


def _write_about(episodes: Sequence[Episode], folder: Path) -> None:
    text = json.dumps({"episodes": [episode.header for episode in episodes]}, indent=1)
    (folder / ABOUT).write_text(text, encoding="utf-8")
