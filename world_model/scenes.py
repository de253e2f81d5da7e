"""Scenes: short real contexts, kept in a world's folder, from which dreams start.

A scene is a safetensors file of `frames` (zlib-compressed differences from frame to frame, uint8),
`shape` (4,), `actions` (T - 1,), `phase` (1,). Differences because consecutive frames of a still camera
are equal; zlib because the core has no image library.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from world_model.checkpoint import load_weights, save_weights
from world_model.types import WorldError

MAX_FRAMES = 256
MAX_SCENES = 256


@dataclass(frozen=True)
class Scene:
    """frames uint8 (T, H, W, 3), actions int64 (T - 1,), phase: clock position of the first transition."""

    name: str
    frames: NDArray[np.uint8]
    actions: NDArray[np.int64]
    phase: int


def scene_names(world: Path) -> tuple[str, ...]:
    """Names of a world's scenes, in order."""
    return tuple(sorted(p.stem for p in (world / "scenes").glob("*.safetensors")))[:MAX_SCENES]


def save_scene(world: Path, scene: Scene) -> None:
    """Writes a scene atomically."""
    (world / "scenes").mkdir(parents=True, exist_ok=True)
    delta = np.diff(scene.frames, axis=0, prepend=np.zeros_like(scene.frames[:1]))
    packed = np.frombuffer(zlib.compress(delta.tobytes(), 9), np.uint8)
    tensors = {
        "frames": torch.from_numpy(packed.copy()),
        "shape": torch.tensor(scene.frames.shape, dtype=torch.int64),
        "actions": torch.from_numpy(scene.actions.astype(np.int64)),
        "phase": torch.tensor([scene.phase], dtype=torch.int64),
    }
    save_weights(world / "scenes" / f"{scene.name}.safetensors", tensors)


def load_scene(world: Path, name: str, size: tuple[int, int], actions: int) -> Scene:
    """Reads a scene of pictures of `size` (H, W). Raises WorldError for an unknown or damaged one."""
    names = scene_names(world)
    if name not in names:
        raise WorldError(f"{world}: no scene {name!r}; there are: {', '.join(names) or 'none'}")
    path = world / "scenes" / f"{name}.safetensors"
    tensors = load_weights(path, None)
    if set(tensors) != {"frames", "shape", "actions", "phase"}:
        raise WorldError(f"{path}: it holds {', '.join(sorted(tensors))} instead of a scene")
    shape = tuple(int(n) for n in tensors["shape"].flatten())
    act = tensors["actions"].long()
    if len(shape) != 4 or shape[1:] != (*size, 3) or not 1 <= shape[0] <= MAX_FRAMES:
        raise WorldError(f"{path}: frames of shape {shape} do not fit this world's {size[1]} x {size[0]}")
    if act.shape != (shape[0] - 1,) or not bool(((act >= 0) & (act < actions)).all()):
        raise WorldError(f"{path}: the actions do not fit the frames or the world")
    return Scene(
        name, _unpack(path, tensors["frames"], shape), act.numpy(), int(tensors["phase"].flatten()[0])
    )


def _unpack(path: Path, packed: torch.Tensor, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    size = int(np.prod(shape))
    try:
        raw = zlib.decompressobj().decompress(packed.to(torch.uint8).numpy().tobytes(), size + 1)
    except zlib.error as err:
        raise WorldError(f"{path}: the frames are damaged: {err}") from err
    if len(raw) != size:
        raise WorldError(f"{path}: the frames are damaged: {len(raw)} bytes instead of {size}")
    delta = np.frombuffer(raw, np.uint8).reshape(shape)
    return np.add.accumulate(delta, axis=0, dtype=np.uint8)
