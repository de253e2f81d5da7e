"""`World`: a trained model of a game that answers `reset` and `step`, one picture a tick.

Owns one dream at a time. States are immutable (`WorldState`), so a snapshot is a reference and costs
nothing; `restore` makes a later step go on from there exactly. A tick can be dreamed without its picture,
which is then painted if somebody asks for it later.
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from world_model.batch_dream import BatchDream
from world_model.checkpoint import WEIGHTS_NAME, read_world_json, save_weights, write_json
from world_model.dream import DreamEngine
from world_model.model import WorldModel
from world_model.paths import find_world
from world_model.precision import native_dtype
from world_model.scenes import Scene, load_scene, scene_names
from world_model.state import DreamState, Keyframe, Memory, Picture, WorldState
from world_model.state_file import Bounds, pack, unpack
from world_model.types import FPS, Action, Frame, FrameInfo, Image, WorldError, WorldInfo
from world_model.weights import load_model, stored_tensors

THUMBNAIL_STEP = 4
"""A keyframe's thumbnail is every fourth pixel of its picture."""

Context = tuple[NDArray[np.uint8], NDArray[Any]]


class World:
    """One world, loaded. Use `load_world`."""

    def __init__(self, engine: DreamEngine, info: WorldInfo, folder: Path) -> None:
        self._engine, self._folder = engine, folder
        self.info = info
        self.actions: tuple[Action, ...] = engine.config.actions
        self._state: WorldState | None = None

    def reset(self, seed: int = 0, scene: str | None = None, context: Context | None = None) -> Frame:
        """Starts a dream from a scene (chosen by `seed` if not named), or from real frames.

        context: obs uint8 (T, H, W, 3) with T >= 1, and the T - 1 actions between them. Returns the last
        context frame as the dream sees it. Raises ValueError for a context of the wrong shape or dtype,
        WorldError for an unknown or damaged scene.
        """
        began = perf_counter()
        start = self._scene(seed, scene) if context is None else self._check_context(*context)
        z = self._engine.encode(start.frames)
        phase = np.array([start.phase])
        dream = self._engine.start(z[None], start.actions[None], phase, seed, start.frames[None], start.past)
        picture = self._picture(dream, self._blank())
        image = picture.copy()
        born = dream.bank.born[0][dream.bank.filled[0]].tolist()
        thumbnails = {int(t): _thumbnail(start.frame(int(t))) for t in born}
        self._state = WorldState(dream, picture, thumbnails, 0, self.info.weights_sha256)
        total = 1e3 * (perf_counter() - began)
        return Frame(image, _sound(dream), FrameInfo(dream.tick, {"total": total}))

    def step(self, action: int, paint: bool = True) -> Frame:
        """Imagines the next tick. Raises ValueError for an action out of range.

        A dream that is over (`info.over`) stands still. With `paint` False the dream is exactly the same, but
        the frame shows the picture painted last and `info.painted` is False; `Frame.painted` paints this
        tick's own where it is wanted after all.
        """
        if self._state is None:
            raise ValueError("call reset before step")
        if isinstance(action, float) or not 0 <= int(action) < len(self.actions):
            names = ", ".join(f"{i} {a.name}" for i, a in enumerate(self.actions))
            raise ValueError(f"action {action!r} is out of range; this world has {names}")
        began = perf_counter()
        before = self._state
        ms: dict[str, float] = {}
        if self._over(before.dream):
            dream = self._engine.rest(before.dream)
            self._state = WorldState(
                dream, before.picture, before.thumbnails, before.guard_events, before.weights_sha256
            )
            return self._frame(self._state, {"total": 1e3 * (perf_counter() - began)}, paint)
        taken = torch.tensor([int(action)])
        dream = self._engine.tick(
            before.dream, taken, ms.__setitem__, before=lambda: before.picture.get()[None]
        )
        guard = before.guard_events
        if _is_finite(dream):
            thumbnails = _kept_thumbnails(before, dream)
            picture = self._picture(dream, before.picture.shown)
            if paint:
                decoding = perf_counter()
                picture.get()
                ms["decode"] = 1e3 * (perf_counter() - decoding)
        else:  # the last good state comes back, a tick older, and the event is counted
            guard, picture, thumbnails = guard + 1, before.picture, before.thumbnails
            dream = replace(before.dream, tick=before.dream.tick + 1)
        self._state = WorldState(dream, picture, thumbnails, guard, before.weights_sha256)
        ms["total"] = 1e3 * (perf_counter() - began)
        return self._frame(self._state, ms, paint)

    def paint(self, state: WorldState | None = None) -> Frame:
        """The picture of a moment, the present one if none is given; painted now if it was not."""
        return self._frame(state or self.snapshot(), {}, True)

    def snapshot(self) -> WorldState:
        """The present moment. Costs nothing: states are never changed in place."""
        if self._state is None:
            raise ValueError("call reset before snapshot")
        return self._state

    def restore(self, state: WorldState) -> None:
        """Goes back to a moment. Raises ValueError when it was made by other weights."""
        if state.weights_sha256 != self.info.weights_sha256:
            raise ValueError("this state was made by another world or other weights")
        self._state = state

    def pack_state(self, state: WorldState) -> bytes:
        """The moment as bytes that `unpack_state` reads, in this program or a later one."""
        return pack(state)

    def unpack_state(self, data: bytes) -> WorldState:
        """The inverse of `pack_state`: the same hash, and the same dream from there on.

        Raises WorldError for anything but a whole, unaltered state of these weights.
        """
        dream, thumbnails, guard = unpack(data, self._bounds)
        picture = self._picture(dream, self._blank())
        return WorldState(dream, picture, thumbnails, guard, self.info.weights_sha256)

    @property
    def memory(self) -> Memory:
        """A read-only view of what the dream holds."""
        if self._state is None:
            return Memory(0, self._engine.config.dynamics.window, ())
        dream = self._state.dream
        bank = dream.bank
        held = bank.filled[0].nonzero().flatten().tolist()
        keyframes = tuple(
            Keyframe(
                self._state.thumbnails[int(bank.born[0, i])],
                dream.tick - int(bank.born[0, i]),
                int(bank.uses[0, i]),
            )
            for i in held
        )
        return Memory(dream.trunk.filled, self._engine.config.dynamics.window, keyframes)

    def _frame(self, state: WorldState, ms: dict[str, float], paint: bool) -> Frame:
        dream, picture = state.dream, state.picture
        attended = tuple(int(i) for i in dict.fromkeys(dream.attended[0].tolist()))
        info = FrameInfo(dream.tick, ms, attended, state.guard_events, paint, self._over(dream))
        if paint:
            return Frame(picture.copy(), _sound(dream), info)
        return Frame(picture.shown.copy(), _sound(dream), info, picture.copy)

    def _over(self, dream: DreamState) -> bool:
        return bool(self._engine.over(dream)[0])

    def _picture(self, dream: DreamState, before: Image) -> Picture:
        paint = self._engine.painter(dream)
        return Picture(lambda: paint()[0], before)

    def _blank(self) -> Image:
        return np.zeros((self.info.height, self.info.width, 3), np.uint8)

    @cached_property
    def _bounds(self) -> Bounds:
        config = self._engine.config
        z = torch.zeros(1, config.tokenizer.latent_dim, *config.tokenizer.grid, device=self._engine.device)
        return Bounds(
            pattern=self._engine.begin(z, np.zeros(1, np.int64)),
            actions=len(self.actions),
            phases=config.phases,
            window=config.dynamics.window,
            thumbnail=_thumbnail(self._blank()).shape,
            weights_sha256=self.info.weights_sha256,
            cast=config.cast,
        )

    def _scene(self, seed: int, name: str | None) -> Scene:
        if name is None:
            if not self.info.scenes:
                raise WorldError(f"{self._folder}: it has no scenes to start from; give a context")
            name = self.info.scenes[seed % len(self.info.scenes)]
        size = (self.info.height, self.info.width)
        dynamics = self._engine.config.dynamics
        keyframes = dynamics.keyframes if dynamics.recall else 0
        return load_scene(self._folder, name, size, len(self.actions), keyframes)

    def _check_context(self, obs: NDArray[np.uint8], act: NDArray[Any]) -> Scene:
        obs, act = np.asarray(obs), np.asarray(act)
        wanted = (self.info.height, self.info.width, 3)
        if obs.ndim != 4 or obs.shape[1:] != wanted or obs.dtype != np.uint8 or len(obs) < 1:
            raise ValueError(
                f"context frames must be uint8 (T, {wanted[0]}, {wanted[1]}, 3), not {obs.dtype} {obs.shape}"
            )
        if act.shape != (len(obs) - 1,) or (len(act) and not np.issubdtype(act.dtype, np.integer)):
            raise ValueError(f"context actions must be {len(obs) - 1} integers, not {act.dtype} {act.shape}")
        if len(act) and (act.min() < 0 or act.max() >= len(self.actions)):
            raise ValueError(f"context actions must lie in 0 .. {len(self.actions) - 1}")
        return Scene("context", obs, act.astype(np.int64), 0)


def load_world(
    name: str | os.PathLike[str] = "rooms", device: str = "cpu", head_steps: int | None = None
) -> World:
    """Loads a world by name or path. Raises WorldError that names the file and the reason."""
    folder = find_world(name)
    description = read_world_json(folder)
    dtype = native_dtype(device)
    model = load_model(folder).for_inference(dtype).to(device)
    config = model.config
    info = WorldInfo(
        name=config.name,
        width=config.tokenizer.width,
        height=config.tokenizer.height,
        fps=FPS,
        parameters=sum(p.numel() for p in model.parameters()),
        scenes=scene_names(folder),
        licence=description["licence"],
        provenance=description["provenance"],
        scores=description["scores"],
        weights_sha256=description["weights_sha256"],
        backend=f"{device}-{str(dtype).removeprefix('torch.')}-{torch.get_num_threads()}",
        sound_rate=0 if config.audio is None else config.audio.rate,
    )
    return World(DreamEngine(model, dtype, head_steps), info, folder)


def batch_dream(name: str | os.PathLike[str], head_steps: int | None = None, seed: int = 0) -> BatchDream:
    """Many dreams of a world at once, for evaluation. Errors as `load_world`."""
    world = load_world(name, head_steps=head_steps)
    return BatchDream(world._engine, world.info.name, seed)


def save_world(
    folder: Path, model: WorldModel, licence: str, provenance: dict[str, Any], scores: dict[str, Any]
) -> None:
    """Writes weights and description of a world."""
    folder.mkdir(parents=True, exist_ok=True)
    config = model.config
    digest = save_weights(folder / WEIGHTS_NAME, stored_tensors(model))
    description = {
        "schema": 1,
        "name": config.name,
        "config": config.to_json(),
        "actions": [a.name for a in config.actions],
        "licence": licence,
        "provenance": provenance,
        "scores": scores,
        "weights_sha256": digest,
    }
    write_json(folder / "world.json", description)


def _is_finite(dream: DreamState) -> bool:
    """One sum over what is fed back: exp and softplus can overflow into the state."""
    total = dream.z.sum() + dream.place.pose.sum() + dream.place.motion.sum()
    for layer in dream.trunk.layers:
        total = total + layer.mamba.ssm.sum()
    return bool(torch.isfinite(total))


def _sound(dream: DreamState) -> NDArray[np.int16] | None:
    """int16 (samples, 2) of the dream's present tick; None in a world without sound."""
    return None if dream.sound is None else dream.sound.samples[0].cpu().numpy().copy()


def _thumbnail(image: Image) -> Image:
    return np.ascontiguousarray(image[::THUMBNAIL_STEP, ::THUMBNAIL_STEP])


def _kept_thumbnails(before: WorldState, dream: DreamState) -> dict[int, Image]:
    """Thumbnails by birth tick. A tick may take in the frame before it, painted now if it was not, or in a
    world that recalls a picture that the bank holds."""
    bank = dream.bank
    if bank.born is before.dream.bank.born:
        return before.thumbnails
    have, kept = before.thumbnails, {}
    for slot in bank.filled[0].nonzero()[:, 0].tolist():
        born = int(bank.born[0, slot])
        if born in have:
            kept[born] = have[born]
        elif bank.images is None:
            kept[born] = _thumbnail(before.image)
        else:
            kept[born] = _thumbnail(bank.images[slot][0].permute(1, 2, 0).cpu().numpy())
    return kept
