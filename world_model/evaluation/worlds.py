"""Worlds as dreamers: guarded against NaN, and with a part of their memory taken away.

An ablation edits the immutable `DreamState` between two ticks; the engine and its weights stay as they
are. Every edited part is overwritten before it is next read, so what the context left in it is gone too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from world_model.batch_dream import BatchDream
from world_model.dream import DreamEngine
from world_model.dynamics import LayerState
from world_model.evaluation.protocol import Images, Ints
from world_model.mamba import MambaState
from world_model.state import DreamState
from world_model.types import WorldError

Begun = dict[tuple[str, int, bool], tuple[DreamState, Images]]
"""How dreams began: by digest of the context, seed, and whether keyframes were off."""
Edit = Callable[[DreamState], DreamState]


class CheckedDream(BatchDream):
    """A world as it is; a state that is no number is an error before it is painted, and so are weights of
    the sound: what its head makes of them would pass for silence."""

    def reset(self, obs: NDArray[np.uint8], act: NDArray[np.int64], phase: NDArray[np.int64]) -> Images:
        """See `BatchDream.reset`. Raises WorldError for sound that is no number."""
        audio = self.engine.model.audio
        if audio is not None and not all(bool(torch.isfinite(p).all()) for p in audio.parameters()):
            raise WorldError(
                f"{self.name} has weights with NaN or infinity in its sound; its scores are void"
            )
        return super().reset(obs, act, phase)

    def advance(self, act: NDArray[np.int64]) -> DreamState:
        """See `BatchDream.advance`. Raises WorldError for a state with NaN or infinity."""
        state = super().advance(act)
        check_finite(state, self.name)
        return state

    def _imagined(self, state: DreamState, act_B: torch.Tensor, real: NDArray[np.uint8]) -> DreamState:
        after = super()._imagined(state, act_B, real)
        check_finite(after, self.name)
        return after


class AblatedDream:
    """A world without a part of its memory (`PARTS`): the parts that are gone stay gone from tick 0 on.

    Painted, heard and reseeded as the world is. It has no teacher-forced predictions, since the context is
    taken in by the whole world. Raises ValueError for an unknown part.
    """

    def __init__(
        self, engine: DreamEngine, part: str, name: str = "dream", seed: int = 0, begun: Begun | None = None
    ) -> None:
        """`begun`: starts that several of them share, so that a context is looked at once."""
        if part not in PARTS:
            raise ValueError(f"unknown ablation {part!r}; there are {', '.join(PARTS)}")
        self.name, self.engine, self.part = f"{name} {part}", engine, part
        self._world = name
        self._dream = _Edited(engine, part, self.name, seed, {} if begun is None else begun)
        self.reset, self.step = self._dream.reset, self._dream.step
        self.advance, self.reconstruct = self._dream.advance, self._dream.reconstruct

    @property
    def heard(self) -> NDArray[np.int16] | None:
        """See `BatchDream.heard`."""
        return self._dream.heard

    def reseeded(self, seed: int) -> AblatedDream:
        """The same world, without the same part, with other chances."""
        return AblatedDream(self.engine, self.part, self._world, seed)


class _Edited(CheckedDream):
    """A world whose state is edited before every tick."""

    def __init__(self, engine: DreamEngine, part: str, name: str, seed: int, begun: Begun) -> None:
        super().__init__(engine, name, seed)
        self._edits, self._blind = PARTS[part]
        self._begun = begun

    def reset(self, obs: NDArray[np.uint8], act: Ints, phase: Ints) -> Images:
        digest = hashlib.sha256(obs[:, -1].tobytes() + act.tobytes() + phase.tobytes()).hexdigest()
        key = (digest, self.seed, self._blind)
        if key not in self._begun:
            with _Keyframes(self.engine, off=self._blind):
                first = super().reset(obs, act, phase)
            assert self._state is not None
            self._begun[key] = self._state, first
        self._state, first = self._begun[key]
        return first.copy()

    def advance(self, act: Ints) -> DreamState:
        assert self._state is not None, "reset comes first"
        for edit in self._edits:
            self._state = edit(self._state)
        with _Keyframes(self.engine, off=self._blind):
            return super().advance(act)


class _Keyframes:
    """Switches an engine's keyframes off for a while; engines are shared with the whole world."""

    def __init__(self, engine: DreamEngine, off: bool) -> None:
        self._engine, self._off = engine, off

    def __enter__(self) -> None:
        self._before = self._engine.use_memory
        self._engine.use_memory = self._before and not self._off

    def __exit__(self, *exc: object) -> None:
        self._engine.use_memory = self._before


def shuffled_keyframes(state: DreamState) -> DreamState:
    """Gives every keyframe of a dream the picture of a random one of its keyframes; where and when they
    were seen, and by what they are found, stays."""
    bank = state.bank
    generator = torch.Generator().manual_seed((state.seed * 1_000_003 + state.tick) % 2**63)
    rank = torch.rand(bank.filled.shape, generator=generator).to(bank.filled.device)
    order = torch.arange(bank.size, device=bank.filled.device).expand_as(bank.filled).clone()
    for b, filled in enumerate(bank.filled):
        held = filled.nonzero()[:, 0]
        order[b, held] = held[rank[b, held].argsort()]
    rows = torch.arange(len(order), device=order.device)[:, None]
    shuffled = replace(bank, frames=bank.frames[rows, order])
    if bank.walls is not None and bank.images is not None and bank.imagined is not None:
        images = torch.stack(bank.images, 1)[rows, order].unbind(1)
        imagined = bank.imagined[rows, order]
        shuffled = replace(shuffled, walls=bank.walls[rows, order], images=images, imagined=imagined)
    return replace(state, bank=shuffled)


def zeroed_state(state: DreamState) -> DreamState:
    """Empties Mamba's state: every tick begins as the first one does."""
    layers = tuple(LayerState(_zero(layer.mamba), layer.window) for layer in state.trunk.layers)
    return replace(state, trunk=replace(state.trunk, layers=layers))


def no_window(state: DreamState) -> DreamState:
    """Forgets the sliding window: a tick sees the present latent alone."""
    return replace(state, trunk=replace(state.trunk, filled=0))


def check_finite(state: DreamState, name: str) -> None:
    """Raises WorldError for a state that is no number: painted, it would pass for a picture."""
    total = state.z.sum() + state.place.pose.sum()
    if state.sound is not None:
        total = total + state.sound.latent.sum() + state.sound.tail.sum()
    if not bool(torch.isfinite(total)):
        raise WorldError(
            f"{name} came to NaN or infinity at tick {state.tick} of a dream; its scores are void"
        )


def _zero(mamba: MambaState) -> MambaState:
    return MambaState(*(torch.zeros_like(t) for t in mamba))


PARTS: dict[str, tuple[tuple[Edit, ...], bool]] = {
    "no-keyframes": ((), True),
    "shuffled-keyframes": ((shuffled_keyframes,), False),
    "zeroed-state": ((zeroed_state,), False),
    "no-window": ((no_window,), False),
    "no-memory": ((zeroed_state, no_window), True),
}
"""Ablations: what is done to the state before every tick, and whether keyframes are switched off."""
