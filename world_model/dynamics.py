"""Trunk and head: how the next latent is imagined.

The sense of place says first where a tick leads and what the map shows there. The trunk is deterministic
and keeps the course: convolutions on the 16 x 10 grid see motion, 40 tokens of 2 x 2 latents and a few global
tokens run through Mamba-2 over time, attention over space, over the sliding window and over retrieved
keyframes. It predicts the mean of the next latent. The head paints: a few steps of a flow from noise to a
sharp latent, given what the trunk says. Trained together, a head learns to ignore the trunk, so it reads
the trunk's output without gradient.

Axes: B batch, T ticks, C channels, h w rows and columns of the latent, N tokens, D width.
Both ways of running give the same numbers: `Trunk.forward` over a clip, `Trunk.step` tick by tick.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from world_model.carry import Carry
from world_model.config import DynamicsConfig
from world_model.mamba import Mamba2, Mamba2Config, MambaState
from world_model.map import SEEN_CHANNELS
from world_model.memory import KeyframeAttention, WindowAttention, attend
from world_model.place import MOTION_UNIT, Place, PlaceModel, PoseEmbedding, Stride
from world_model.recall import Views
from world_model.recollection import Glimpse, Recollection

CONDITION = 192
NOISE_STD = 0.5
"""Standard deviation of the head's starting noise: about that of the latents."""


class Step(NamedTuple):
    """Where a tick leads, as the sense of place has it: pose (..., 3) after it, motion (..., 3) of it, and
    what the map shows there, seen (..., SEEN_CHANNELS, h, w). All zero in a world without poses."""

    pose: Tensor
    motion: Tensor
    seen: Tensor


class Retrieved(NamedTuple):
    """Keyframes for the trunk to read: frames (B, K, C, h, w), age (B, K) ticks, place (pose) (B, K, 3)."""

    frames: Tensor
    age: Tensor
    pose: Tensor


class TrunkOutput(NamedTuple):
    """mean (..., C, h, w) of the next latent; features (..., F, h, w) for the head; carried (..., C, h, w),
    the present latent as the motion leaves it (or as it is, in a world without a carry)."""

    mean: Tensor
    features: Tensor
    carried: Tensor


class FilmBlock(nn.Module):
    """Residual convolutions whose middle is scaled and shifted by a condition; starts as the identity."""

    def __init__(self, channels: int, condition: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.film = nn.Linear(condition, 2 * channels)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.film.weight)

    def forward(self, x_FCHW: Tensor, e_FE: Tensor) -> Tensor:
        return self.filmed(x_FCHW, self.film(e_FE))

    def filmed(self, x_FCHW: Tensor, film: Tensor) -> Tensor:
        """The same, given what the condition says."""
        scale, shift = film[..., None, None].chunk(2, 1)
        h = self.conv1(F.silu(x_FCHW)) * (1 + scale) + shift
        out: Tensor = x_FCHW + self.conv2(F.silu(h))
        return out


class SpaceAttention(nn.Module):
    """Attention among the tokens of a frame."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)

    def forward(self, x_FND: Tensor) -> Tensor:
        q, k, v = self.qkv(x_FND).chunk(3, -1)
        out: Tensor = self.out(attend(q, k, v, self.heads))
        return out


class LayerState(NamedTuple):
    """What a layer carries from tick to tick: Mamba's state; keys and values of the window if it has one."""

    mamba: MambaState
    window: Tensor | None


class Layer(nn.Module):
    """Mamba-2 over time, attention over space, a perceptron; one layer also reads window and keyframes."""

    def __init__(self, config: DynamicsConfig, latent_dim: int, tokens: int, reads_memory: bool) -> None:
        super().__init__()
        d, heads = config.d_model, config.attention_heads
        self.norm_time, self.norm_space, self.norm_mlp = nn.RMSNorm(d), nn.RMSNorm(d), nn.RMSNorm(d)
        self.mamba = Mamba2(Mamba2Config(d, d_state=config.d_state, head_dim=config.head_dim))
        self.space = SpaceAttention(d, heads)
        self.mlp = nn.Sequential(nn.Linear(d, 2 * d), nn.SiLU(), nn.Linear(2 * d, d))
        self.reads_memory = reads_memory
        if reads_memory:
            self.norm_window, self.norm_keyframes = nn.RMSNorm(d), nn.RMSNorm(d)
            self.window = WindowAttention(d, heads, config.window)
            self.keyframes = KeyframeAttention(d, heads, latent_dim, tokens, CONDITION)

    def forward(self, x_BTND: Tensor, place_BTE: Tensor, memory: tuple[Tensor, Tensor] | None) -> Tensor:
        """A whole clip from an empty state."""
        b, t, n, d = x_BTND.shape
        x = x_BTND.transpose(1, 2).reshape(b * n, t, d)
        y = self.mamba(self.norm_time(x))
        x = x + y
        if self.reads_memory:
            x = x + self.window(self.norm_window(x))
        x = x.view(b, n, t, d).transpose(1, 2).reshape(b * t, n, d)
        if self.reads_memory and memory is not None:
            q = self.norm_keyframes(x).view(b, t * n, d)
            place = place_BTE[:, :, None].expand(-1, -1, n, -1).reshape(b, t * n, -1)
            x = x + self.keyframes(q, place, *memory).view(b * t, n, d)
        return self._rest(x).view(b, t, n, d)

    def step(
        self,
        x_BND: Tensor,
        place_BE: Tensor,
        memory: tuple[Tensor, Tensor] | None,
        state: LayerState,
        filled: int,
    ) -> tuple[Tensor, LayerState]:
        """One tick; `filled` frames of the window are real."""
        b, n, d = x_BND.shape
        x = x_BND.reshape(b * n, d)
        y, mamba = self.mamba.step(self.norm_time(x), state.mamba)
        x, window = x + y, state.window
        if self.reads_memory and window is not None:
            y, window = self.window.step(self.norm_window(x), window, filled)
            x = x + y
        x = x.view(b, n, d)
        if self.reads_memory and memory is not None:
            place = place_BE[:, None].expand(-1, n, -1)
            x = x + self.keyframes(self.norm_keyframes(x), place, *memory)
        return self._rest(x), LayerState(mamba, window)

    def _rest(self, x_FND: Tensor) -> Tensor:
        x = x_FND + self.space(self.norm_space(x_FND))
        out: Tensor = x + self.mlp(self.norm_mlp(x))
        return out


@dataclass(frozen=True)
class TrunkState:
    """All that the trunk carries between ticks, constant in size."""

    layers: tuple[LayerState, ...]
    filled: int
    """Frames in the sliding window, 0 to W."""


class Trunk(nn.Module):
    """(latent, action, phase, step) of a tick -> mean of the next latent."""

    def __init__(
        self, config: DynamicsConfig, latent_dim: int, grid: tuple[int, int], actions: int, phases: int
    ):
        super().__init__()
        self.config, self.grid = config, grid
        rows, columns = grid
        c, d = config.conv_dim, config.d_model
        self.tokens = rows * columns // 4
        self.embed_action = nn.Embedding(actions, CONDITION)
        self.embed_phase = nn.Embedding(phases, CONDITION)
        self.embed_motion = nn.Linear(3, CONDITION)
        self.place = PoseEmbedding(CONDITION, config.pose_octaves)
        self.condition = nn.Sequential(nn.SiLU(), nn.Linear(CONDITION, CONDITION), nn.SiLU())
        self.stem = nn.Conv2d(latent_dim + SEEN_CHANNELS, c, 3, padding=1)
        self.embed_cell = nn.Parameter(torch.randn(c, rows, columns) * 0.02)
        self.down_blocks = nn.ModuleList(FilmBlock(c, CONDITION) for _ in range(config.conv_blocks))
        self.down = nn.Linear(4 * c, d)
        self.embed_token = nn.Parameter(torch.randn(self.tokens, d) * 0.02)
        self.embed_global = nn.Parameter(torch.randn(config.global_tokens, d) * 0.02)
        self.condition_token = nn.Linear(CONDITION, d)
        memory_layer = config.layers // 2
        self.layers = nn.ModuleList(
            Layer(config, latent_dim, self.tokens, i == memory_layer) for i in range(config.layers)
        )
        self.norm = nn.RMSNorm(d)
        self.up = nn.Linear(d, 4 * c)
        self.up_seen = nn.Conv2d(SEEN_CHANNELS, c, 1)
        self.up_blocks = nn.ModuleList(FilmBlock(c, CONDITION) for _ in range(config.conv_blocks))
        self.out = nn.Conv2d(c, 2 * latent_dim, 3, padding=1)
        self.carries = config.carry > 0
        if self.carries:
            self.stem_carried = nn.Conv2d(latent_dim, c, 3, padding=1)
            self.choose_carried = nn.Conv2d(c, latent_dim, 3, padding=1)

    def forward(
        self,
        z_BTChw: Tensor,
        act_BT: Tensor,
        phase_BT: Tensor,
        step: Step,
        retrieved: Retrieved | None,
        carried_BTChw: Tensor | None = None,
    ) -> TrunkOutput:
        """A clip from an empty state; output t is about tick t + 1. carried: the latents as the motions of
        `step` leave them (`WorldModel.carried`), in a world that carries."""
        b, t = act_BT.shape
        flat = Step(*(s.flatten(0, 1) for s in step))
        z = z_BTChw.flatten(0, 1)
        moved = z if carried_BTChw is None else carried_BTChw.flatten(0, 1)
        e, stem = self._enter(z, moved, act_BT.flatten(), phase_BT.flatten(), flat)
        x = self._tokens(stem, e).view(b, t, -1, self.config.d_model)
        place = self.place(step.pose)
        memory = self._memory(retrieved)
        for layer in self._layers():
            x = layer(x, place, memory if layer.reads_memory else None)
        out = self._leave(x.flatten(0, 1), stem, e, z, moved, flat)
        return TrunkOutput(*(v.view(b, t, *v.shape[1:]) for v in out))

    def step(
        self,
        z_BChw: Tensor,
        act_B: Tensor,
        phase_B: Tensor,
        step: Step,
        retrieved: Retrieved | None,
        state: TrunkState,
        carried_BChw: Tensor | None = None,
    ) -> tuple[TrunkOutput, TrunkState]:
        """One tick with carried state; `carried` as for a clip."""
        moved = z_BChw if carried_BChw is None else carried_BChw
        e, stem = self._enter(z_BChw, moved, act_B, phase_B, step)
        x, place, memory = self._tokens(stem, e), self.place(step.pose), self._memory(retrieved)
        layers = []
        for layer, before in zip(self._layers(), state.layers, strict=True):
            x, after = layer.step(x, place, memory if layer.reads_memory else None, before, state.filled)
            layers.append(after)
        out = self._leave(x, stem, e, z_BChw, moved, step)
        return out, TrunkState(tuple(layers), min(state.filled + 1, self.config.window))

    def init_state(self, batch: int, device: torch.device | str = "cpu") -> TrunkState:
        n = self.tokens + self.config.global_tokens
        shape = (batch * n, self.config.window, 2 * self.config.d_model)
        return TrunkState(
            tuple(
                LayerState(
                    layer.mamba.init_state(batch * n, device),
                    torch.zeros(shape, dtype=torch.bfloat16, device=device) if layer.reads_memory else None,
                )
                for layer in self._layers()
            ),
            0,
        )

    def _enter(
        self, z: Tensor, moved: Tensor, act: Tensor, phase: Tensor, step: Step
    ) -> tuple[Tensor, Tensor]:
        """Condition (F, E) and the convolutional stem's output (F, c, h, w) of F frames."""
        motion = step.motion / torch.tensor(MOTION_UNIT, device=z.device)
        e = self.embed_action(act) + self.embed_phase(phase) + self.embed_motion(motion)
        e = self.condition(e)
        x = self.stem(torch.cat((z, step.seen.to(z.dtype)), 1)) + self.embed_cell
        if self.carries:
            x = x + self.stem_carried(moved)
        for block in self.down_blocks:
            x = block(x, e)
        return e, x

    def _tokens(self, stem: Tensor, e: Tensor) -> Tensor:
        patches = F.pixel_unshuffle(stem, 2).flatten(2).transpose(1, 2)
        x = self.down(patches) + self.embed_token
        x = torch.cat((x, self.embed_global.to(x.dtype).expand(len(x), -1, -1)), 1)
        out: Tensor = x + self.condition_token(e)[:, None]
        return out

    def _layers(self) -> list[Layer]:
        return [layer for layer in self.layers if isinstance(layer, Layer)]

    def _memory(self, retrieved: Retrieved | None) -> tuple[Tensor, Tensor] | None:
        if retrieved is None or not retrieved.frames.shape[1]:
            return None
        reader = next(layer.keyframes for layer in self._layers() if layer.reads_memory)
        place = self.place(retrieved.pose)
        keys: tuple[Tensor, Tensor] = reader.keys(retrieved.frames, retrieved.age, place)
        return keys

    def _leave(
        self, x_FND: Tensor, stem: Tensor, e: Tensor, z: Tensor, moved: Tensor, step: Step
    ) -> TrunkOutput:
        x = self.norm(x_FND)[:, : self.tokens]
        rows, columns = self.grid
        up = self.up(x).transpose(1, 2).unflatten(2, (rows // 2, columns // 2))
        h = stem + F.pixel_shuffle(up, 2) + self.up_seen(step.seen)
        for block in self.up_blocks:
            h = block(h, e)
        fresh, keep = self.out(F.silu(h)).float().chunk(2, 1)
        gate, base = torch.sigmoid(keep), z.float()
        if self.carries:
            moving = torch.sigmoid(self.choose_carried(F.silu(h)).float())
            base = base + moving * (moved.float() - base)
        mean = gate * base + (1 - gate) * torch.tanh(fresh)
        return TrunkOutput(mean, torch.cat((h, step.seen.to(h.dtype)), 1), moved.float())


class Head(nn.Module):
    """Paints the next latent: a flow from noise, predicting the clean latent (x-prediction).

    noised(tau) = tau * clean + (1 - tau) * noise, tau from 0 to 1 in `steps` Euler steps.

    What is painted tick after tick from a mean wears off. So in a world that carries the head also says
    which cells need no painting: these are kept as they are carried, sharp.
    """

    def __init__(self, config: DynamicsConfig, latent_dim: int) -> None:
        super().__init__()
        d = config.head_dim_conv
        self.level = nn.Sequential(
            nn.Linear(8, CONDITION), nn.SiLU(), nn.Linear(CONDITION, CONDITION), nn.SiLU()
        )
        self.stem = nn.Conv2d(3 * latent_dim + config.conv_dim + SEEN_CHANNELS, d, 3, padding=1)
        self.blocks = nn.ModuleList(FilmBlock(d, CONDITION) for _ in range(config.head_blocks))
        self.out = nn.Conv2d(d, latent_dim, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        self.keep = nn.Conv2d(d, 1, 3, padding=1) if config.carry else None

    def forward(
        self, noised: Tensor, tau: Tensor, mean: Tensor, present: Tensor, features: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """(F, C, h, w) latents and tau (F,) -> the clean latent and, in a world that carries, the logits
        (F, 1, h, w) of a cell being kept. present: as it is carried, where it is."""
        powers = torch.arange(4, device=tau.device)
        angles = tau[:, None] * torch.pi * 2.0**powers
        e = self.level(torch.cat((angles.sin(), angles.cos()), 1))
        x = self.stem(torch.cat((noised, mean, present, features.to(mean.dtype)), 1))
        for block in self.blocks:
            x = block(x, e)
        x = F.silu(x)
        return mean + self.out(x).float(), None if self.keep is None else self.keep(x).float()

    def sample(
        self,
        noise: Tensor,
        mean: Tensor,
        present: Tensor,
        features: Tensor,
        steps: int,
        kept: Tensor | None = None,
    ) -> Tensor:
        """A latent from unit noise (F, C, h, w). kept: what cells hold that are not painted, or `present`."""
        x, keeps = noise * NOISE_STD, None
        for k in range(steps):
            tau = torch.full((len(x),), k / steps, device=x.device)
            clean, keep = self(x, tau, mean, present, features)
            x = x + (clean - x) / (steps - k)
            if k == 0 and keep is not None:
                keeps = keep > 0
        if keeps is not None:
            x = torch.where(keeps, present if kept is None else kept, x)
        return x.clamp(-1, 1)


class Dynamics(nn.Module):
    """Sense of place, trunk and head of one world."""

    def __init__(
        self, config: DynamicsConfig, latent_dim: int, grid: tuple[int, int], actions: int, phases: int
    ):
        super().__init__()
        self.config, self.grid = config, grid
        sizes = (latent_dim, grid, actions, phases)
        self.place = PlaceModel(*sizes, config) if config.pose else None
        self.recollection = Recollection(*sizes, config) if config.recall else None
        self.carry = Carry(latent_dim, config.carry, config.horizon) if config.carry else None
        self.trunk = Trunk(config, *sizes)
        self.head = Head(config, latent_dim)

    @property
    def stride(self) -> Stride | None:
        """How an action moves the player; None where nothing is reckoned, or by what feels for walls."""
        if self.recollection is not None:
            return self.recollection.stride
        own = self.place.motion if self.place is not None else None
        return own if isinstance(own, Stride) else None

    @torch.no_grad()
    def unlearn_seen(self) -> None:
        """Makes trunk and head blind to what a view is told by beside its latent.

        These features mean what the sense of place has made of them: to weights that come from another one
        they are noise. The latent is a latent everywhere.
        """
        trunk, stem = self.trunk, self.head.stem
        features = SEEN_CHANNELS - trunk.out.out_channels // 2
        for layer in (trunk.stem, trunk.up_seen, stem):  # in each of them `seen` comes last
            layer.weight[:, -features:] = 0

    def step_to(self, place: Place, views: Views | None = None, glimpse: Glimpse | None = None) -> Step:
        """What the trunk is told of a place (F, ...) that a tick leads to; `views` where it recalls, and the
        `glimpse` of them from there, if there was one already."""
        if self.recollection is not None:
            assert views is not None
            return Step(place.pose * 0, place.motion, self.recollection.seen(views, place.pose, glimpse))
        if self.place is None:
            seen = place.pose.new_zeros(len(place.pose), SEEN_CHANNELS, *self.grid)
            return Step(place.pose * 0, place.motion * 0, seen)
        return Step(place.pose, place.motion, self.place.map.seen(place.pose))

    def move(self, place: Place, act: Tensor, phase: Tensor, views: Views | None = None) -> Place:
        """The place after a tick; the same where a world has no sense of place."""
        if self.recollection is not None:
            assert views is not None
            return self.recollection.move(place, act, phase, views)
        return place if self.place is None else self.place.move(place, act, phase)

    def look(self, place: Place, z: Tensor) -> Place:
        """The place after a look at a real frame."""
        return place if self.place is None else self.place.look(place, z)
