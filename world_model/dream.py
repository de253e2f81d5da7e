"""A batch of dreams tick by tick: what `World` is for one player and evaluation for many at once.

Axes: B dreams, T ticks of context, C channels, h w rows and columns of the latent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cached_property, partial
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from world_model.atlas import Atlas
from world_model.cast import WATCHED
from world_model.dynamics import NOISE_STD, Retrieved, TrunkOutput
from world_model.focus import fitted, focused
from world_model.gauges import Readings
from world_model.imagination import PAINTED, TICKS
from world_model.keeper import Keeper, Latest, Pictures
from world_model.memory import KeyframeBank
from world_model.model import AT_REST, WorldModel
from world_model.place import HISTORY, Place, PlaceModel, compose, motion_between
from world_model.recall import Views
from world_model.recollection import Glimpse
from world_model.scenes import Past
from world_model.settle import fuse, settle, sharpen
from world_model.state import DreamState
from world_model.things import Things
from world_model.tokenizer import to_float, to_uint8

ENCODED_AT_ONCE = 64
"""Frames; a long context in one piece would take gigabytes."""
THOUGHT = 32
"""Last ticks of a context that the trunk of a world that recalls reads: as many as it learned from. What lies
before them is held in keyframes."""
FOLLOW_ROUNDS = 2
"""A settled dream that goes on watching is led by its last real frames."""

SOUND_NOISE = 1 << 40
"""Sets the chance of a tick's sound apart from that of its picture."""
CAST_NOISE = 1 << 41
"""And that of what things do."""
VISION_NOISE = 1 << 42
"""And that of what is made up."""
LOOKED_AHEAD, TURNING = 3, 0.03
"""Ticks between two looks at what will be missed, and radians a tick from which on each has one."""
LEAD = TICKS + 4
"""Ticks by which it is looked ahead of a turn: what is held just in time is soon at the edge of the view."""
ASIDE = 1.2
"""Radians to the side of where the player will look, in which something may be missed soon."""

Timer = Callable[[str, float], None]


def _untimed(section: str, milliseconds: float) -> None:
    pass


class DreamEngine:
    """Runs dreams of one world. Holds no dream itself: states go in and come out."""

    def __init__(self, model: WorldModel, dtype: torch.dtype = torch.float32, head_steps: int | None = None):
        self.model, self.dtype = model, dtype
        self.config = model.config
        self.head_steps = head_steps or self.config.head_steps
        self.device = next(model.parameters()).device
        self.use_memory = True
        recollection = model.dynamics.recollection
        recalled = self.config.dynamics.recalled
        self._keeper = None if recollection is None else Keeper(recollection, recalled)
        self._half_painted = Latest()

    def _precision(self) -> AbstractContextManager[None]:
        enabled = self.dtype != torch.float32
        return torch.autocast(self.device.type, self.dtype if enabled else torch.bfloat16, enabled=enabled)

    @torch.no_grad()
    def encode(self, obs: NDArray[np.uint8]) -> Tensor:
        """uint8 (F, H, W, 3) -> latents (F, C, h, w), fp32."""
        with self._precision():
            encode = self.model.tokenizer.encode
            parts = [obs[i : i + ENCODED_AT_ONCE] for i in range(0, len(obs), ENCODED_AT_ONCE)]
            return torch.cat([encode(to_float(part, self.device)).float() for part in parts])

    @torch.inference_mode()
    def decode(
        self,
        z: Tensor,
        pose: Tensor | None = None,
        views: Views | None = None,
        glimpse: Glimpse | None = None,
        things: Things | None = None,
        readings: Readings | None = None,
    ) -> NDArray[np.uint8]:
        """Latents (F, C, h, w) -> uint8 (F, H, W, 3); a `pose` (F, 3) adds the detail of the map there, or
        of what `views` hold in a world that recalls, and a `glimpse` of them if there was one already; and
        `things` what there is before it. `readings` are written on the bar."""
        place, recollection, detail = self.model.dynamics.place, self.model.dynamics.recollection, None
        with self._precision():
            if place is not None and pose is not None:
                detail = place.map.detail(pose)
                if things is not None:
                    detail = detail._replace(things=self.model.overlay(things, pose))
            if recollection is not None and pose is not None and views is not None:
                detail = recollection.detail(views, pose, glimpse)
            picture = self.model.tokenizer.decode(self._to_paint(z), detail)
            if self.model.gauges is not None and readings is not None:
                picture = self.model.gauges.write(picture, readings.shown)
            return to_uint8(picture)

    def _to_paint(self, z: Tensor) -> Tensor:
        return z.to(self.dtype).contiguous(memory_format=torch.channels_last)

    def show(self, state: DreamState) -> NDArray[np.uint8]:
        """The pictures uint8 (B, H, W, 3) of a moment."""
        return self.painter(state)()

    def painter(self, state: DreamState) -> Pictures:
        """Paints a moment when it is called. It holds on to what it needs of the state, not to all of it."""
        z, pose, keeper = state.z, state.place.pose, self._keeper
        if keeper is None:
            things, readings = state.things, state.readings
            return lambda: self.decode(z, pose, things=things, readings=readings)
        bank, attended = state.bank, state.attended

        @torch.inference_mode()
        def paint() -> NDArray[np.uint8]:
            views = keeper.views(bank, attended)
            with self._precision():
                glimpse = keeper.glimpse(views, pose)
            return self.decode(z, pose, views, glimpse)

        return paint

    def begin(self, z_BChw: Tensor, phase: NDArray[np.int64], seed: int = 0) -> DreamState:
        """The state before anything was made of a first latent; phase (B,) as for `start`."""
        batch = len(z_BChw)
        return DreamState(
            z=z_BChw,
            place=self._nowhere(batch),
            trunk=self.model.dynamics.trunk.init_state(batch, self.device),
            bank=self._empty_bank(batch, z_BChw.shape[1]),
            phase=torch.as_tensor(phase, dtype=torch.long, device=self.device) % self.config.phases,
            attended=torch.zeros(batch, 0, dtype=torch.long, device=self.device),
            tick=0,
            seed=seed,
            sound=None if self.model.audio is None else self.model.audio.silence(batch, self.device),
            things=None if self.model.cast is None else self.model.cast.begin(batch, self.device),
            readings=None if self.model.gauges is None else self.model.gauges.nothing(batch, self.device),
            vision=(
                None if self.model.imagination is None else self.model.imagination.nothing(batch, self.device)
            ),
        )

    @torch.no_grad()
    def start(
        self,
        z_BTChw: Tensor,
        act: NDArray[np.int64],
        phase: NDArray[np.int64],
        seed: int = 0,
        obs: Sequence[NDArray[np.uint8]] | NDArray[np.uint8] | None = None,
        past: Past | None = None,
    ) -> DreamState:
        """Shows the trunk real frames (B, T, ...) and the T - 1 actions between them (B, T - 1).

        phase (B,) is the clock position of the first of these transitions. `obs` (B, T, H, W, 3) are the
        frames themselves: a world that recalls holds them as they are, or else as it would paint them. And
        such a one may have a `past`, the same for every dream.
        """
        state = self.begin(z_BTChw[:, 0], phase, seed)
        if past is not None:
            state = self._with_past(state, past)
        actions = torch.as_tensor(np.asarray(act), dtype=torch.long, device=self.device)
        state = self.look(state)
        path = [state.place]
        for t in range(actions.shape[1]):
            real = None if obs is None else np.stack([[o[t], o[t + 1]] for o in obs])
            lately = actions.shape[1] - t <= THOUGHT or not self.config.dynamics.recall
            state = self.observe(state, actions[:, t], z_BTChw[:, t + 1], real, lately)
            path.append(state.place)
            new = self.config.dynamics.recall and past is None
            if t + 1 == HISTORY and new and t + 1 < actions.shape[1]:
                # How fast the player turned when the context began shows only now: where these frames were
                # taken is not known well enough to hold them.
                state = replace(state, bank=self._empty_bank(len(z_BTChw), z_BTChw.shape[2]))
        if self._keeper is not None and obs is not None:
            # The last real frame is what is known best of all.
            last = np.stack([o[-1] for o in obs])
            all_of_them = torch.ones(len(last), dtype=torch.bool, device=self.device)
            with self._precision():
                bank = self._keeper.hold(
                    state.bank, all_of_them, state.z, state.place.pose, state.tick, lambda: last
                )
            state = replace(state, bank=bank)
        state, track = self._settled(state, path, z_BTChw, actions)
        if obs is not None:
            state, track = self._focused(state, track, np.stack([o[-1] for o in obs]))
        return self._search(state, track, z_BTChw, actions, obs)

    def _search(
        self,
        state: DreamState,
        track_BT3: Tensor,
        z_BTChw: Tensor,
        act_BT: Tensor,
        obs: Sequence[NDArray[np.uint8]] | NDArray[np.uint8] | None,
    ) -> DreamState:
        """Looks for things in the last frames of a context, once it is known from where they were seen."""
        if self.model.cast is None:
            return state
        track, count = track_BT3[:, -WATCHED:], act_BT.shape[1]
        state = replace(state, things=self.model.cast.begin(len(z_BTChw), self.device))
        for k, t in enumerate(range(count + 1 - track.shape[1], count + 1)):
            if k:
                state = self._act(state, track[:, k - 1], act_BT[:, t - 1], t - 1 - count)
            picture = self.decode(z_BTChw[:, t]) if obs is None else np.stack([o[t] for o in obs])
            state = self.watch(state, picture, track[:, k])
        return state if obs is None else self._fitted(state, picture)

    def _fitted(self, state: DreamState, picture: NDArray[np.uint8]) -> DreamState:
        """The present things put right by a real picture (B, H, W, 3) of them."""
        cast, place = self.model.cast, self.model.dynamics.place
        assert cast is not None and place is not None and state.things is not None
        x, pose = self._view(picture), state.place.pose.float()
        resident = cast.spotter.residents[:, 0] > 0
        how = (pose, self.model.camera, place.map.surfaces.walls, resident)
        things = fitted(cast.sprites, state.things, x, self._map_picture(pose)[:, :, : x.shape[2]], *how)
        return replace(state, things=things)

    def _view(self, picture: NDArray[np.uint8]) -> Tensor:
        """Pictures (B, H, W, 3) in [-1, 1], without a status bar."""
        rows = round((self.model.camera.bottom + 1) / 2 * picture.shape[1])
        return to_float(picture, self.device)[:, :, :rows]

    def _map_picture(self, pose_F3: Tensor) -> Tensor:
        """What the map alone paints: (F, 3, H, W) in about [-1, 1]."""
        place, detail = self.model.dynamics.place, self.model.tokenizer.decoder.detail
        assert place is not None and detail is not None
        with self._precision():
            return detail.paint(place.map.detail(pose_F3).fine).float()

    @torch.no_grad()
    def watch(self, state: DreamState, picture: NDArray[np.uint8], pose: Tensor | None = None) -> DreamState:
        """The present things as a real picture (B, H, W, 3) of them shows, taken from `pose` (B, 3)."""
        cast, place = self.model.cast, self.model.dynamics.place
        if cast is None or state.things is None or place is None:
            return state
        x = to_float(picture, self.device).to(self.dtype)
        at = state.place.pose if pose is None else pose
        with self._precision():
            things = cast.watch(state.things, x, at.float(), self.model.camera, place.map.surfaces.walls)
        readings, gauges = state.readings, self.model.gauges
        if gauges is not None and readings is not None:
            readings = gauges.watch(readings, x)
        return replace(state, things=things, readings=readings)

    def _act(self, state: DreamState, pose: Tensor, act_B: Tensor, ticks: int = 0) -> DreamState:
        """With what things do, and how numbers change, while the player, at `pose` before it, acts; `ticks`
        from the state's own."""
        cast, place = self.model.cast, self.model.dynamics.place
        if cast is None or place is None or state.things is None:
            return state
        chance = torch.Generator().manual_seed((_noise_seed(state, ticks) ^ CAST_NOISE) % 2**63)
        drawn = torch.rand(len(pose), cast.config.slots + cast.config.gates, 3, generator=chance)
        phase, walls = (state.phase + ticks) % self.config.phases, place.map.surfaces.walls
        with torch.autocast(self.device.type, enabled=False):
            how = (self.model.camera, walls, drawn.to(self.device))
            meant = self._meant(state, act_B)
            things = cast.step(state.things, pose.float(), meant, phase, *how)
            readings, gauges = state.readings, self.model.gauges
            if gauges is not None and readings is not None:
                luck = torch.rand(readings.value.shape, generator=chance).to(self.device)
                readings = gauges.step(readings, state.things, pose.float(), act_B, phase, luck)
        return replace(state, things=things, readings=readings)

    def _meant(self, state: DreamState, act_B: Tensor) -> Tensor:
        """What the actions amount to in this state: without ammunition a shot is none."""
        gauges, readings = self.model.gauges, state.readings
        return act_B if gauges is None or readings is None else gauges.meant(readings, act_B)

    def over(self, state: DreamState) -> Tensor:
        """Which dreams (B,) have come to their end, as by the player's death."""
        gauges, readings = self.model.gauges, state.readings
        if gauges is None or readings is None:
            return torch.zeros(len(state.z), dtype=torch.bool, device=self.device)
        return gauges.over(readings)

    def rest(self, state: DreamState) -> DreamState:
        """A tick in which nothing happens and nothing is heard."""
        sound = state.sound
        if sound is not None:
            sound = sound._replace(samples=torch.zeros_like(sound.samples))
        return replace(state, tick=state.tick + 1, sound=sound)

    def _with_past(self, state: DreamState, past: Past) -> DreamState:
        """The beginning of a dream that has been somewhere before."""
        assert self._keeper is not None, "only a world that recalls can have a past"
        batch = len(state.z)

        def every(numbers: NDArray[Any]) -> Tensor:
            return torch.from_numpy(numbers).to(self.device).expand(batch, -1)

        bank, all_of_them = state.bank, torch.ones(batch, dtype=torch.bool, device=self.device)
        held = zip(past.born.tolist(), past.poses, past.frames, self.encode(past.frames), strict=True)
        for born, pose, frame, z in sorted(held, key=lambda one: one[0]):
            pictures = partial(np.repeat, frame[None], batch, 0)
            z_BChw = z.expand(batch, *z.shape)
            with self._precision():
                bank = self._keeper.hold(bank, all_of_them, z_BChw, every(pose), born, pictures)
        place = state.place._replace(
            pose=every(past.pose), motion=every(past.motion), history=every(past.history)
        )
        return replace(state, bank=bank, place=place, tick=past.ticks)

    def settle(self, state: DreamState, path: list[Place], z_BTChw: Tensor, act_BT: Tensor) -> DreamState:
        """Makes sure of the place after some context; see `settle.settle`."""
        return self._settled(state, path, z_BTChw, act_BT)[0]

    @torch.no_grad()
    def _settled(
        self, state: DreamState, path: list[Place], z_BTChw: Tensor, act_BT: Tensor
    ) -> tuple[DreamState, Tensor]:
        """The same, and the poses (B, T, 3) of the last T frames of the context."""
        place = self.model.dynamics.place
        if place is None:
            return state, state.place.pose[:, None]
        assert self.model.aligner is not None
        generator = torch.Generator().manual_seed(state.seed % 2**63)
        back = torch.arange(act_BT.shape[1], 0, -1, device=self.device)
        phase = (state.phase[:, None] - back) % self.config.phases
        with self._precision():
            found = settle(place, self.model.aligner, self._atlas, path, z_BTChw, act_BT, phase, generator)
        return replace(state, place=found.place), found.track

    def _focused(
        self, state: DreamState, track_BT3: Tensor, last: NDArray[np.uint8]
    ) -> tuple[DreamState, Tensor]:
        """A settled place put right by the last real pictures (B, H, W, 3), and the way there with it."""
        if self.model.dynamics.place is None or self.model.tokenizer.decoder.detail is None:
            return state, track_BT3
        generator = torch.Generator().manual_seed(state.seed % 2**63)
        pose = focused(self._map_picture, self._view(last), state.place.pose, generator)
        walked = motion_between(track_BT3[:, -1:].expand_as(track_BT3), track_BT3)
        track = compose(pose[:, None].expand_as(walked), walked)
        return replace(state, place=state.place._replace(pose=pose)), track

    @cached_property
    def _atlas(self) -> Atlas:
        assert self.model.dynamics.place is not None
        return Atlas(self.model.dynamics.place, self.config.tokenizer.latent_dim)

    @torch.no_grad()
    def follow(self, state: DreamState, path: list[Place], z_BTChw: Tensor) -> DreamState:
        """Keeps a settled place right by the last real frames and the steps between them (path[1:])."""
        place = self.model.dynamics.place
        if place is None:
            return state
        assert self.model.aligner is not None
        track = self._walked(state, path)
        with self._precision():
            pose = sharpen(place, self.model.aligner, track, z_BTChw, rounds=FOLLOW_ROUNDS)
        return replace(state, place=state.place._replace(pose=pose))

    @staticmethod
    def _walked(state: DreamState, path: list[Place]) -> Tensor:
        """The poses (B, T, 3) of the steps that led to the present place, as far as it is right."""
        walked = [torch.zeros_like(state.place.pose)]
        for after in path[1:]:
            walked.append(compose(walked[-1], after.motion))
        back = [motion_between(walked[-1], pose) for pose in walked]
        return torch.stack([compose(state.place.pose, motion) for motion in back], 1)

    def observe(
        self,
        state: DreamState,
        act_B: Tensor,
        z_BChw: Tensor,
        real: NDArray[np.uint8] | None = None,
        think: bool = True,
    ) -> DreamState:
        """A tick whose outcome is a real frame's latent; `real` (B, 2, H, W, 3) are the pictures of the
        moment before it and of its own. Without `think` it is held in memory, and the trunk hears nothing
        of it."""
        before = None if real is None else lambda: real[:, 0]
        take = self._trunk if think else self._move
        after = take(state, act_B, before, real=True)[0]
        return self.look(replace(after, z=z_BChw), state, real)

    def look(
        self, state: DreamState, before: DreamState | None = None, real: NDArray[np.uint8] | None = None
    ) -> DreamState:
        """The present latent is a real frame's: a look at it tells where it was taken. `before` and `real` as
        `observe` has them; what is not given is painted."""
        recollection = self.model.dynamics.recollection
        with self._precision():
            if recollection is None:
                return replace(state, place=self.model.dynamics.look(state.place, state.z))
            if before is None:
                return state
            if real is None:
                real = np.stack((self.decode(before.z), self.decode(state.z)), 1)
            first, second = torch.from_numpy(real).to(self.device).permute(1, 0, 4, 2, 3)
            place = recollection.correct(first, second, before.place, state.place)
            if state.attended.shape[1] and self.model.aligner is not None and self._keeper is not None:
                seen = recollection.seen(self._keeper.views(state.bank, state.attended), place.pose)
                told = self.model.aligner(state.z, seen[:, : state.z.shape[1]])
                place = fuse(place, told)
        return replace(state, place=place)

    def _nowhere(self, batch: int) -> Place:
        """The place where a dream begins: anywhere, or, without a map, where its coordinates begin."""
        place = PlaceModel.nowhere(batch, self.device)
        return place._replace(variance=place.variance * 0) if self.config.dynamics.recall else place

    @torch.inference_mode()
    def tick(
        self,
        state: DreamState,
        act_B: Tensor,
        timer: Timer = _untimed,
        before: Pictures | None = None,
        real: bool = False,
    ) -> DreamState:
        """Imagines the next latent of each dream. `before` gives the pictures (B, H, W, 3) of `state`: `real`
        ones, or such as were painted already."""
        spent: dict[str, float] = {}
        began = perf_counter()
        asked, act_B = act_B, self._meant(state, act_B)
        after, out = self._trunk(state, act_B, before, real, spent.__setitem__)
        thought = perf_counter()
        with self._precision():
            noise, motion = self._noise(state), after.place.motion
            z = self.model.paint(noise, out, state.z, motion, self.head_steps)
            if self.model.cast is not None:
                z = torch.where(self._idle(after.place)[:, None, None, None], state.z, z)
            acting = perf_counter()
            acted = self._act(state, state.place.pose, asked)
        if acted is not state:
            after = replace(after, things=acted.things, readings=acted.readings)
            spent["cast"] = 1e3 * (perf_counter() - acting)
            thought += perf_counter() - acting
        for section, milliseconds in spent.items():
            timer(section, milliseconds)
        timer("trunk", 1e3 * (thought - began) - sum(spent.values()))
        painted = perf_counter()
        timer("head", 1e3 * (painted - thought))
        if self.model.audio is None or state.sound is None:
            return replace(after, z=z)
        chance = torch.Generator().manual_seed((_noise_seed(state) ^ SOUND_NOISE) % 2**63)
        sound = self.model.audio.step(state.sound, out.features, z, act_B, chance)
        timer("sound", 1e3 * (perf_counter() - painted))
        return replace(after, z=z, sound=sound)

    def _trunk(
        self,
        state: DreamState,
        act_B: Tensor,
        before: Pictures | None = None,
        real: bool = False,
        timer: Timer = _untimed,
    ) -> tuple[DreamState, TrunkOutput]:
        """Everything of a tick but the new latent; `before` and `real` as for `tick`."""
        # First of all: what was looked at last is at hand still.
        told = None if real or self._keeper is None else self.told(state)
        if not real:
            began = perf_counter()
            envisioned = self._envision(state)
            if envisioned is not state:
                state = envisioned
                timer("imagine", 1e3 * (perf_counter() - began))
        after, views, retrieved = self._move(state, act_B, before, real, told)
        with self._precision():
            dynamics = self.model.dynamics
            keeper, pose = self._keeper, after.place.pose
            glimpse = None if keeper is None or views is None else keeper.glimpse(views, pose)
            step = dynamics.step_to(after.place, views, glimpse)
            began = perf_counter()
            carried = self.model.carried(state.z, step.motion)
            if carried is not None:
                timer("carry", 1e3 * (perf_counter() - began))
            out, trunk = dynamics.trunk.step(
                state.z, act_B, state.phase, step, retrieved, state.trunk, carried
            )
        return replace(after, trunk=trunk), out

    def _move(
        self,
        state: DreamState,
        act_B: Tensor,
        before: Pictures | None,
        real: bool,
        told: Tensor | None = None,
    ) -> tuple[DreamState, Views | None, Retrieved | None]:
        """What of a tick needs no trunk: the moment is offered to the bank, and the place moves on. And what
        is remembered there. told: of a dreamed moment, by keyframes."""
        bank = self._offer(state, before or self.painter(state), real)
        attended, retrieved = self._retrieve(state, bank)
        with self._precision():
            dynamics = self.model.dynamics
            views = felt = None
            if dynamics.recollection is not None and self._keeper is not None:
                views = self._keeper.views(bank, attended)
                held = self._keeper.blank(bank) if self.use_memory else views
                here = dynamics.recollection.walls(state.z, told)
                felt = dynamics.recollection.felt(held, state.place, here)
            place = self._beside(state, dynamics.move(state.place, act_B, state.phase, felt))
        after = replace(
            state,
            place=place,
            bank=bank.used(attended),
            phase=(state.phase + 1) % self.config.phases,
            attended=attended,
            tick=state.tick + 1,
        )
        return after, views, retrieved

    def _envision(self, state: DreamState) -> DreamState:
        """A tick's work at what nobody has seen: a view of it is begun, gone on with, or held in memory."""
        imagination, vision, keeper = self.model.imagination, state.vision, self._keeper
        if imagination is None or vision is None or keeper is None or not self.use_memory:
            return state
        bank, x, clean, left = state.bank, vision.x, vision.clean, vision.left
        going, ready = left > PAINTED, left == 1
        with self._precision():
            if bool((left == PAINTED).any()):
                self._start_painting(x)
            if bool(ready.any()):
                how = (ready, x.clamp(-1, 1), vision.pose, state.tick, lambda: self._painted(x))
                bank = keeper.hold(bank, *how, imagined=True)
        if bool(going.any()):
            stepped = imagination.step(x, clean, left - PAINTED, vision.clue)
            x, clean = (
                torch.where(going[:, None, None, None], new, old)
                for new, old in zip(stepped, (x, clean), strict=True)
            )
        if bool(left.any()):
            vision = vision._replace(x=x, clean=clean, left=(left - 1).clamp(min=0))
            state = replace(state, bank=bank, vision=vision)
        with self._precision():
            return self._begin_vision(state, left == 0)

    def _begin_vision(self, state: DreamState, idle_B: Tensor) -> DreamState:
        """Begins to make up what a player will not know who turns on like this, or soon to either side."""
        imagination, vision, keeper, place = self.model.imagination, state.vision, self._keeper, state.place
        assert imagination is not None and vision is not None and keeper is not None
        due = state.tick % LOOKED_AHEAD == 0
        idle_B = idle_B & (due | (place.motion[:, 2].abs() > TURNING))
        if not bool(idle_B.any()):
            return state
        side = ASIDE if state.tick // LOOKED_AHEAD % 2 else -ASIDE
        turn = LEAD * place.motion[:, 2:] + place.motion.new_tensor([0, side])
        poses = torch.stack([_turned(place.pose, turn[:, i : i + 1]) for i in range(2)], 1)
        missed, shown = keeper.misses(state.bank, poses)
        begun = idle_B & missed.any(1)
        if not bool(begun.any()):
            return state
        each = torch.arange(len(begun), device=self.device), (~missed[:, 0]).long()
        pose, shown = poses[each], shown[each]
        generator = torch.Generator().manual_seed((_noise_seed(state) ^ VISION_NOISE) % 2**63)
        noise = NOISE_STD * torch.randn(vision.x.shape, generator=generator).to(pose)

        def new(fresh: Tensor, old: Tensor) -> Tensor:
            return torch.where(begun.view(-1, *[1] * (old.ndim - 1)), fresh.to(old.dtype), old)

        clue = imagination.hint(keeper.tell(state.bank, pose, shown))
        fresh = (noise, noise, clue, pose, torch.full_like(vision.left, TICKS))
        vision = type(vision)(*(new(f, old) for f, old in zip(fresh, vision, strict=True)))
        return replace(state, vision=vision)

    def _start_painting(self, x_BChw: Tensor) -> Tensor:
        """A part of the work on a picture of what was made up, so that no tick has all of it. Nothing hangs
        on it: what was not started, or lost with a state that was stored, is done when it is wanted."""
        started: Tensor = self._half_painted.get(
            (x_BChw,), lambda: self.model.tokenizer.decoder.start(self._to_paint(x_BChw.clamp(-1, 1)))
        )
        return started

    def _painted(self, x_BChw: Tensor) -> NDArray[np.uint8]:
        return to_uint8(self.model.tokenizer.decoder.finish(self._start_painting(x_BChw)))

    def told(self, state: DreamState) -> Tensor:
        """What the keyframes that a moment looks at tell of its view."""
        assert self._keeper is not None
        return self._keeper.glimpse(self._keeper.views(state.bank, state.attended), state.place.pose).told

    @cached_property
    def _keyless(self) -> Tensor:
        return torch.tensor([not a.default_keys for a in self.config.actions], device=self.device)

    def _idle(self, place: Place) -> Tensor:
        """Which players (B,) have stood still for a while without a key. Where things are kept apart nothing
        else moves then: what is painted hundreds of times over would become something else."""
        idle = (place.history >= 0) & self._keyless[place.history.clamp(min=0)]
        return idle.all(-1) & (place.motion.abs() < AT_REST).all(-1)

    def _beside(self, state: DreamState, place: Place) -> Place:
        """The next place, if things that are solid leave room for it."""
        if self.model.cast is None or state.things is None:
            return place
        end = place.pose[:, :2]
        beside = self.model.cast.behaviour.beside(state.things, state.place.pose[:, :2], end)
        if torch.equal(beside, end):
            return place
        pose = torch.cat((beside, place.pose[:, 2:]), 1)
        return place._replace(pose=pose, motion=motion_between(state.place.pose, pose))

    def _empty_bank(self, batch: int, channels: int) -> KeyframeBank:
        size, keyframes = self.config.tokenizer, self.config.dynamics.keyframes
        picture = (size.height, size.width) if self.config.dynamics.recall else None
        return KeyframeBank.empty(batch, keyframes, (channels, *size.grid), self.device, picture)

    def _offer(self, state: DreamState, picture: Pictures, real: bool) -> KeyframeBank:
        """The bank after it was offered the present moment. Where what is missing is made up, a dream holds
        nothing else of its own."""
        if self.model.imagination is not None and self.use_memory and not real:
            return state.bank
        if self._keeper is None:
            return state.bank.offer(state.z, state.place.pose, state.tick)
        with self._precision():
            pose, tick = state.place.pose, state.tick
            return self._keeper.offer(state.bank, state.z, pose, tick, picture, imagined=not real)

    def _retrieve(self, state: DreamState, bank: KeyframeBank) -> tuple[Tensor, Retrieved | None]:
        count = min(self.config.dynamics.retrieved, bank.size)
        if not self.use_memory:
            return torch.zeros(len(state.z), 0, dtype=torch.long, device=self.device), None
        if self._keeper is not None:
            found = self._keeper.retrieve(bank, state.place.pose)
            return found, self._read(state, bank, found[:, :count])
        positions = bank.retrieve(state.z, count)
        # A bank with fewer frames than are asked for answers with its first frame again.
        positions = torch.where(bank.filled.gather(1, positions), positions, torch.zeros_like(positions))
        return positions, self._read(state, bank, positions)

    def _read(self, state: DreamState, bank: KeyframeBank, positions: Tensor) -> Retrieved:
        rows = torch.arange(len(positions), device=self.device)[:, None]
        age = (state.tick - bank.born[rows, positions]).float()
        pose = bank.pose[rows, positions]
        # Coordinates that begin anywhere tell a trunk nothing.
        pose = pose * 0 if self.config.dynamics.recall else pose
        return Retrieved(bank.frames[rows, positions], age, pose)

    def _noise(self, state: DreamState) -> Tensor:
        """Depends on seed and tick alone, so that a restored state goes on as it did."""
        generator = torch.Generator().manual_seed(_noise_seed(state) % 2**63)
        return torch.randn(state.z.shape, generator=generator).to(self.device)


def _turned(pose_B3: Tensor, turn_B1: Tensor) -> Tensor:
    return torch.cat((pose_B3[:, :2], pose_B3[:, 2:] + turn_B1), 1).float()


def _noise_seed(state: DreamState, ticks: int = 0) -> int:
    return state.seed * 1_000_003 + state.tick + ticks
