"""Scenes: short real contexts, kept in a world's folder, from which dreams start.

A scene is a safetensors file of `frames` (zlib-compressed differences from frame to frame, uint8),
`shape` (4,), `actions` (T - 1,), `phase` (1,). Differences because consecutive frames of a still camera
are equal; zlib because the core has no image library.

In a world that recalls a scene may come with a `Past`: the keyframes of a long walk before it, and where the
walker stood by then. A dream that begins so has seen all of that walk, and has to look at its end only.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from world_model.checkpoint import load_weights, save_weights
from world_model.place import HISTORY
from world_model.types import WorldError

MAX_FRAMES = 256
MAX_SCENES = 256
MAX_TICKS = 100_000
SCENE = {"frames", "shape", "actions", "phase"}
PAST = {f"past.{name}" for name in ("frames", "ticks", "poses", "born", "pose", "motion", "history")}


@dataclass(frozen=True)
class Past:
    """What a dream holds of `ticks` ticks before a scene: K real frames uint8 (K, H, W, 3), the pose (K, 3)
    and the tick born (K,) of each; and at the scene's first frame the pose and motion (3,) and the last
    actions (HISTORY,), as `Place` has them. Poses are the dream's own reckoning."""

    ticks: int
    frames: NDArray[np.uint8]
    poses: NDArray[np.float32]
    born: NDArray[np.int64]
    pose: NDArray[np.float32]
    motion: NDArray[np.float32]
    history: NDArray[np.int64]


@dataclass(frozen=True)
class Scene:
    """frames uint8 (T, H, W, 3), actions int64 (T - 1,), phase: clock position of the first transition."""

    name: str
    frames: NDArray[np.uint8]
    actions: NDArray[np.int64]
    phase: int
    past: Past | None = None

    def frame(self, tick: int) -> NDArray[np.uint8]:
        """The real frame of a tick of the dream that begins here: one of the scene, or one that is held."""
        if self.past is None:
            return self.frames[tick]
        if tick >= self.past.ticks:
            return self.frames[tick - self.past.ticks]
        return self.past.frames[int((self.past.born == tick).argmax())]


def scene_names(world: Path) -> tuple[str, ...]:
    """Names of a world's scenes, in order."""
    return tuple(sorted(p.stem for p in (world / "scenes").glob("*.safetensors")))[:MAX_SCENES]


def save_scene(world: Path, scene: Scene) -> None:
    """Writes a scene atomically."""
    (world / "scenes").mkdir(parents=True, exist_ok=True)
    tensors = {
        "frames": _packed(scene.frames, axis=0),
        "shape": torch.tensor(scene.frames.shape, dtype=torch.int64),
        "actions": torch.from_numpy(scene.actions.astype(np.int64)),
        "phase": torch.tensor([scene.phase], dtype=torch.int64),
    }
    if scene.past is not None:
        past = scene.past
        tensors |= {
            "past.frames": _packed(past.frames, axis=2),
            "past.ticks": torch.tensor([past.ticks], dtype=torch.int64),
            "past.poses": torch.from_numpy(past.poses),
            "past.born": torch.from_numpy(past.born),
            "past.pose": torch.from_numpy(past.pose),
            "past.motion": torch.from_numpy(past.motion),
            "past.history": torch.from_numpy(past.history),
        }
    save_weights(world / "scenes" / f"{scene.name}.safetensors", tensors)


def load_scene(world: Path, name: str, size: tuple[int, int], actions: int, keyframes: int = 0) -> Scene:
    """Reads a scene of pictures of `size` (H, W), with a past of up to `keyframes` of them. Raises WorldError
    for an unknown or damaged one."""
    names = scene_names(world)
    if name not in names:
        raise WorldError(f"{world}: no scene {name!r}; there are: {', '.join(names) or 'none'}")
    path = world / "scenes" / f"{name}.safetensors"
    tensors = load_weights(path, None)
    if set(tensors) not in (SCENE, SCENE | PAST):
        raise WorldError(f"{path}: it holds {', '.join(sorted(tensors))} instead of a scene")
    shape = tuple(int(n) for n in tensors["shape"].flatten())
    act = tensors["actions"].long()
    if len(shape) != 4 or shape[1:] != (*size, 3) or not 1 <= shape[0] <= MAX_FRAMES:
        raise WorldError(f"{path}: frames of shape {shape} do not fit this world's {size[1]} x {size[0]}")
    if act.shape != (shape[0] - 1,) or not bool(((act >= 0) & (act < actions)).all()):
        raise WorldError(f"{path}: the actions do not fit the frames or the world")
    past = _past(path, tensors, size, actions, keyframes) if set(tensors) >= PAST else None
    frames = _unpack(path, tensors["frames"], shape, axis=0)
    return Scene(name, frames, act.numpy(), int(tensors["phase"].flatten()[0]), past)


def _past(
    path: Path, tensors: dict[str, torch.Tensor], size: tuple[int, int], actions: int, keyframes: int
) -> Past:
    poses, born = tensors["past.poses"].float(), tensors["past.born"].long()
    pose, motion = tensors["past.pose"].float(), tensors["past.motion"].float()
    history, ticks = tensors["past.history"].long(), tensors["past.ticks"].long()
    count = len(born) if born.ndim == 1 else 0
    fits = 1 <= count <= keyframes and poses.shape == (count, 3) and pose.shape == motion.shape == (3,)
    fits = fits and history.shape == (HISTORY,) and ticks.shape == (1,) and 0 <= int(ticks) <= MAX_TICKS
    if not fits or not bool(((history >= -1) & (history < actions)).all()):
        raise WorldError(f"{path}: the past of this scene does not fit the world")
    if len(born.unique()) < count or not 0 <= int(born.min()) <= int(born.max()) < int(ticks):
        raise WorldError(f"{path}: the ticks of the past of this scene are no ticks before it")
    frames = _unpack(path, tensors["past.frames"], (count, *size, 3), axis=2)
    numbers = (t.numpy() for t in (poses, born, pose, motion, history))
    return Past(int(ticks), frames, *numbers)


def _packed(frames: NDArray[np.uint8], axis: int) -> torch.Tensor:
    """Differences along an axis, compressed."""
    delta = np.diff(frames, axis=axis, prepend=np.zeros_like(frames.take([0], axis)))
    return torch.from_numpy(np.frombuffer(zlib.compress(delta.tobytes(), 9), np.uint8).copy())


def _unpack(path: Path, packed: torch.Tensor, shape: tuple[int, ...], axis: int) -> NDArray[np.uint8]:
    size = int(np.prod(shape))
    try:
        raw = zlib.decompressobj().decompress(packed.to(torch.uint8).numpy().tobytes(), size + 1)
    except zlib.error as err:
        raise WorldError(f"{path}: the frames are damaged: {err}") from err
    if len(raw) != size:
        raise WorldError(f"{path}: the frames are damaged: {len(raw)} bytes instead of {size}")
    delta = np.frombuffer(raw, np.uint8).reshape(shape)
    return np.add.accumulate(delta, axis=axis, dtype=np.uint8)
