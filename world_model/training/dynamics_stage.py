"""Stages `trunk`, `head` and `rollout`: learning to imagine the next latent from one's own imagination.

All three train on clips that start as a dream starts, with an empty state; the place is the dream's own
reckoning from a start that is a little off.

- `trunk`: parallel scheduled sampling. The trunk reads the clip without gradient, the context after a
  random cut is replaced by its own predictions shifted by a tick, up to three times over (each pass adds
  a tick of compounding), then one pass with gradient against the clean targets.
- `head`: the same with the trunk frozen; what is fed back are the head's samples.
- `rollout`: a stretch of each clip is dreamed tick by tick as in play, with carried state, and both parts
  learn to get from each dreamed moment to the true next one; where keyframes show something, to what the
  encoder makes of the picture that the dream will paint of it.

Things that move cover little of a picture and are what counts: where they are, an error costs more. But
what happens by chance happens otherwise in a dream, and who is held to it learns to let things fade: after a
dreamed moment they count like all the rest, and whether to keep them is not asked.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from world_model.data.dataset import Clips, LatentDataset
from world_model.data.remembered import Held
from world_model.dynamics import NOISE_STD, Dynamics, Head, Retrieved, Step, TrunkOutput
from world_model.model import WorldModel
from world_model.place import Place, PlaceModel, compose, motion_between
from world_model.precision import mixed_precision
from world_model.recall import Views
from world_model.recollection import known_cells
from world_model.training.preview import RolloutPreview

START_ERROR = (math.log(0.0005), math.log(0.02))
"""Range of the error of a clip's first pose, in half extents (log)."""


@dataclass(frozen=True)
class DynamicsStageConfig:
    """How the dynamics are trained. `feed` is what takes the place of real context after the cut."""

    name: str
    ticks: int
    batch_size: int
    context: int = 8
    """Ticks that always stay real at the start of a clip."""
    max_passes: int = 3
    train_trunk: bool = True
    train_head: bool = False
    dreamed: int = 0
    """At most so many ticks in a row are dreamed with carried state; 0 for parallel scheduled sampling."""
    compile: bool = False


STAGES = {
    "trunk": DynamicsStageConfig("trunk", ticks=32, batch_size=12),
    "head": DynamicsStageConfig(
        "head", ticks=32, batch_size=12, max_passes=2, train_trunk=False, train_head=True
    ),
    "rollout": DynamicsStageConfig(
        "rollout", ticks=32, batch_size=12, context=6, train_head=True, dreamed=24
    ),
}


def imagining(world: WorldModel, config: DynamicsStageConfig) -> nn.ModuleDict:
    """What a stage trains. A checkpoint that held more would bring back what is old."""
    parts: dict[str, nn.Module] = {}
    if config.train_trunk:
        parts["trunk"] = world.dynamics.trunk
    if config.train_head:
        parts["head"] = world.dynamics.head
    return nn.ModuleDict(parts)


class DynamicsStage:
    """One of `STAGES`. `model` is what moves of trunk and head."""

    def __init__(
        self,
        config: DynamicsStageConfig,
        world: WorldModel,
        data: LatentDataset,
        preview: RolloutPreview,
        device: str,
    ) -> None:
        self.name, self.config = config.name, config
        self.device = torch.device(device)
        self._world, self._data, self._preview = world, data, preview
        self.model: nn.Module = imagining(world, config)
        self.dynamics: Dynamics = world.dynamics
        self.dynamics.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.dynamics.requires_grad_(False)
        self.dynamics.trunk.requires_grad_(config.train_trunk)
        self.dynamics.head.requires_grad_(config.train_head)
        sample = np.concatenate([z[::50].astype(np.float32).ravel() for z in data.latents[:20]])
        self._variance = float(sample.var())
        self._steps = world.config.head_steps
        self._again = 0
        self._thought: tuple[Tensor, TrunkOutput, Tensor, Tensor] | None = None
        """Targets, what the trunk made of them, `attention` and `painting` of the last pass."""
        self._trunk = torch.compile(self.dynamics.trunk) if config.compile else self.dynamics.trunk
        self._head = torch.compile(self.dynamics.head) if config.compile else self.dynamics.head

    def batch(self, rng: np.random.Generator, done: float) -> Clips:
        keyframes = self.dynamics.config.retrieved
        return self._data.sample(rng, self.config.batch_size, self.config.ticks, keyframes)

    def loss(self, batch: Clips, done: float) -> tuple[Tensor, dict[str, float]]:
        if self._again:
            return self._painted_again()
        clips = batch.to(self.device)
        with mixed_precision(self.device.type):
            nothing = clips.held is not None and bool(torch.rand(()) < AMNESIA)
            retrieved = None if nothing else self._retrieved(clips)
            z = clips.z[:, :-1]
            with torch.no_grad():
                way = own_way(self.dynamics, clips, 1.0 if nothing else FORGOTTEN)
                step = way.step
                own_context = self._dream if self.config.dreamed else self._own_context
                z, carried = own_context(clips, z, step, retrieved)
                target, counts = self._as_painted(clips, z, way)
            out: TrunkOutput
            with torch.set_grad_enabled(self.config.train_trunk):
                out = self._trunk(z, clips.act, clips.phase, step, retrieved, carried)
            weight, dear = attention(clips, z, self._world.config.cast is not None), painting(clips, z)
            weight = weight * counts
            if not self.config.train_trunk:
                self._thought = target, out, weight, dear
                self._again = AGAIN
            return self._losses(target, out, weight, dear)

    def _painted_again(self) -> tuple[Tensor, dict[str, float]]:
        """A step of the head alone on some frames that the trunk thought of last: a tenth of the cost."""
        assert self._thought is not None
        self._again -= 1
        target, out, *costs = self._thought
        some = torch.randperm(target.shape[1], device=self.device)[: (target.shape[1] + 1) // 2]
        with mixed_precision(self.device.type):
            part = TrunkOutput(*(x[:, some] for x in out))
            return self._head_loss(target[:, some], part, *(cost[:, some] for cost in costs))

    def preview(self, path: Path) -> dict[str, float]:
        return self._preview(self._world, path)

    def _losses(
        self, target: Tensor, out: TrunkOutput, weight: Tensor, dear: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        error = ((out.mean - target).square() * weight).mean() / self._variance
        total = error if self.config.train_trunk else torch.zeros((), device=self.device)
        metrics = {"mean": error.item()}
        if self.config.train_head:
            painted, told = self._head_loss(target, out, weight, dear)
            total, metrics = total + painted, metrics | told
        return total, metrics

    def _head_loss(
        self, target: Tensor, out: TrunkOutput, attention: Tensor, painting: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        """x-prediction at random points of the flow, weighted up toward its clean end."""
        present, clean = out.carried.detach().flatten(0, 1), target.flatten(0, 1)
        mean, features = out.mean.detach().flatten(0, 1), out.features.detach().flatten(0, 1)
        cost, dear = attention.flatten(0, 1), painting.flatten(0, 1)
        # A third of the levels at pure noise: with few steps that is where much of the painting happens.
        tau = torch.rand(len(clean), device=self.device) * (torch.rand(len(clean), device=self.device) > 0.33)
        t = tau[:, None, None, None]
        noised = t * clean + (1 - t) * torch.randn_like(clean) * NOISE_STD
        painted, keep = self._head(noised, tau, mean, present, features)
        miss = ((painted - clean).square() * cost).mean((1, 2, 3))
        total = (miss * (0.5 + tau)).mean()
        if keep is not None:
            first = (tau == 0)[:, None, None, None]
            total = total + keep_loss(keep, painted, present, clean, cost * first, dear)
        total = total / self._variance
        return total, {"head": total.item()}

    def _as_painted(self, clips: Clips, z: Tensor, way: Way) -> tuple[Tensor, Tensor]:
        """Targets (B, T, C, h, w) and which cells of them count (B, T, 1, h, w), 1 or 0: true latents; but in
        dreams, where keyframes show something, what the encoder makes of a picture of it, from where the
        dream believes it stands. How far off that is nobody can tell: who is held to the true latent there
        learns a mean of many, and wears off within ten ticks.
        """
        true, recollection = clips.z[:, 1:], self.dynamics.recollection
        if recollection is None or way.views is None or way.known is None or not self.config.dreamed:
            return true, torch.ones_like(true[:, :, :1])
        target, counts, tokenizer = true.clone(), 1 - way.known, self._world.tokenizer
        dreamed = (~_real(clips, z)).any(0).flatten().float()
        order = (dreamed + torch.rand(len(dreamed), device=self.device)).argsort(descending=True)
        for t in order[:PAINTED].tolist():  # all together would not fit a cache
            views = way.views._replace(held=way.views.held[:, t : t + 1])
            picture = tokenizer.decode(true[:, t], recollection.detail(views, way.pose[:, t]))
            painted = tokenizer.encode(picture.clamp(-1, 1)).float()
            target[:, t] = torch.where(way.known[:, t] > 0, painted, true[:, t])
            counts[:, t] = 1
        return target, counts

    def _own_context(
        self, clips: Clips, z: Tensor, step: Step, retrieved: Retrieved | None
    ) -> tuple[Tensor, Tensor | None]:
        """Parallel scheduled sampling: 0 to `max_passes` passes over the clip. The latents, and as they are
        carried."""
        true, carried = z, self._world.carried(z, step.motion)
        ticks = torch.arange(z.shape[1], device=self.device)
        cut = torch.randint(self.config.context, z.shape[1], (z.shape[0], 1), device=self.device)
        own = ticks >= cut
        # What a world carries is painted and looked at again: a pass costs it five times as much.
        passes = min(self.config.max_passes, 1) if carried is not None else self.config.max_passes
        for _ in range(int(torch.randint(0, passes + 1, ()))):
            out = self._trunk(z, clips.act, clips.phase, step, retrieved, carried)
            fed = paint(self.dynamics.head, out, self._steps) if self.config.train_head else out.mean
            z = torch.where(own[..., None, None, None], torch.cat((true[:, :1], fed[:, :-1]), 1), true)
            if carried is not None:
                again = self._world.carried(z[own], step.motion[own])
                assert again is not None
                carried = carried.index_put((own,), again)
        return z, carried

    def _dream(
        self, clips: Clips, z: Tensor, step: Step, retrieved: Retrieved | None
    ) -> tuple[Tensor, Tensor | None]:
        """Tick by tick with carried state: real frames, but for a stretch of the dream's own. As
        `_own_context` has them."""
        trunk = self.dynamics.trunk
        state, carried = trunk.init_state(z.shape[0], self.device), self._world.carried(z, step.motion)
        cut = int(torch.randint(self.config.context, self.config.ticks, ()))
        end = min(cut + int(torch.randint(1, self.config.dreamed + 1, ())), z.shape[1])
        for t in range(end):
            now, moved = Step(*(s[:, t] for s in step)), None if carried is None else carried[:, t]
            if t >= cut and carried is not None:
                moved = self._world.carried(z[:, t], now.motion)
                carried = torch.cat((carried[:, :t], moved[:, None], carried[:, t + 1 :]), 1)  # type: ignore[index]
            if t + 1 == end:
                break
            act, phase = clips.act[:, t], clips.phase[:, t]
            out, state = trunk.step(z[:, t], act, phase, now, retrieved, state, moved)
            if t + 1 >= cut:  # before, the state only has to see the real frames
                noise = torch.randn_like(z[:, t])
                fed = self._world.paint(noise, out, z[:, t], now.motion, self._steps)
                z = torch.cat((z[:, : t + 1], fed[:, None], z[:, t + 2 :]), 1)
        return z, carried

    def _retrieved(self, clips: Clips) -> Retrieved:
        """Keyframes of the clip's own episode; for a tenth of the clips useless ones, of another episode."""
        batch, count = clips.past_age.shape
        pose = (
            clips.past_pose
            if clips.past_pose is not None and self.dynamics.place is not None
            else torch.zeros(batch, count, 3, device=self.device)
        )
        source = torch.arange(batch, device=self.device)
        useless = torch.rand(batch, device=self.device) < 0.1
        source = torch.where(useless, source.roll(1), source)
        noise = torch.randn_like(clips.past) * 0.1 * torch.rand(batch, 1, 1, 1, 1, device=self.device)
        return Retrieved((clips.past + noise)[source], clips.past_age[source], pose[source])


PAINTING = 0.7, 1.8
"""How much dearer an error is that was painted than one that was kept, where nothing moves and where all
does: of what moves a mean is near to everything, and wears off; what the map knows must not drift from it."""


def keep_loss(
    keep: Tensor, painted: Tensor, present: Tensor, clean: Tensor, cost: Tensor, painting: Tensor
) -> Tensor:
    """Whether each cell is rather kept, asked of its logit, where painting makes an error `painting` times as
    dear. A wrong answer costs what is lost by it; where `painting` is zero nothing is asked."""
    paint, copy = ((x.detach() - clean).square().mean(1, keepdim=True) for x in (painted, present))
    gain = torch.where(painting > 0, painting * paint - copy, 0)
    wrong = F.binary_cross_entropy_with_logits(keep, (gain > 0).float(), reduction="none")
    return (wrong * gain.abs() * cost).mean()


PAINTED = 12
"""Ticks to a step whose own pictures are looked at, dreamed ones first: it costs more than all the rest."""
AGAIN = 7
"""Steps of a head on what a frozen trunk has thought, after the first."""
LIVELY = 8.0
"""How much more an error costs in a cell that is full of things that move."""
HIDDEN = -0.9
"""The same where it is not the latent that shows them."""


def attention(clips: Clips, z: Tensor, kept_apart: bool = False) -> Tensor:
    """What an error costs in each cell of the targets, one in the mean: (B, T, 1, h, w). After a present of
    `z` (B, T, C, h, w) that was dreamed, things that move count like all the rest: they stand elsewhere.

    kept_apart: it is not the latent that shows them (`cast.py`), so where they are hardly anything counts.
    """
    if kept_apart:
        return costs(_moving(clips), HIDDEN)
    return costs(_moving(clips) * _real(clips, z))


def painting(clips: Clips, z: Tensor) -> Tensor:
    """PAINTING of each cell of the targets (B, T, 1, h, w); 0 where the present was dreamed: that a monster
    of the dream stands elsewhere than the real one is no reason to drop it."""
    still, moving = PAINTING
    real = _real(clips, z)
    return (real * (still + (moving - still) * _moving(clips)))[:, :, None]


def _real(clips: Clips, z: Tensor) -> Tensor:
    """Of which ticks (B, T, 1, 1) the present of `z` is the real one."""
    return (z == clips.z[:, :-1]).flatten(2).all(2)[..., None, None]


def _moving(clips: Clips) -> Tensor:
    """Which part of each cell of the targets (B, T, h, w) things that move cover; none without boxes."""
    return torch.zeros_like(clips.z[:, 1:, 0]) if clips.lively is None else clips.lively[:, 1:]


def costs(lively_BThw: Tensor, more: float = LIVELY) -> Tensor:
    """The same by which part of each cell things that move cover."""
    weight = 1 + more * lively_BThw[:, :, None]
    return weight / weight.mean()


def paint(head: Head, out: TrunkOutput, steps: int) -> Tensor:
    """The head's samples (B, T, C, h, w) for every tick of a clip."""
    mean, present, features = (t.flatten(0, 1) for t in (out.mean, out.carried, out.features))
    sampled = head.sample(torch.randn_like(mean), mean, present, features, steps)
    return sampled.view_as(out.mean)


FORGOTTEN, PATCHY, AMNESIA = 0.1, 0.5, 0.15
"""Part of the clips in which no keyframe shows anything, in which some do not, and of the steps in which
there are none at all."""


class Way(NamedTuple):
    """Where the ticks of clips lead: the steps, the poses (B, T, 3) and, in a world that recalls, what is
    looked at from there and which cells (B, T, 1, h, w) keyframes show, 1 or 0."""

    step: Step
    pose: Tensor
    views: Views | None
    known: Tensor | None


def own_steps(dynamics: Dynamics, clips: Clips) -> Step:
    """The steps of `own_way`."""
    return own_way(dynamics, clips).step


@torch.no_grad()
def own_way(dynamics: Dynamics, clips: Clips, forgotten: float = FORGOTTEN) -> Way:
    """Where the ticks of a clip lead by the dream's own reckoning, from a start that is a little off.

    The error at the start covers what sight leaves after a context, over a decade and a half.
    """
    batch, ticks = clips.act.shape
    place = PlaceModel.nowhere(batch, clips.z.device)
    if clips.pose is not None:
        scale = torch.exp(torch.empty(batch, 1, device=clips.z.device).uniform_(*START_ERROR))
        lost = 1 + 5 * (torch.rand_like(scale) < 0.12)  # some clips are so far off that the map misleads
        unit = torch.tensor([1.0, 1.0, 2.0], device=scale.device)
        error = scale * lost * torch.randn(batch, 3, device=scale.device) * unit
        motion = motion_between(clips.before, clips.pose[:, 0])
        place = place._replace(pose=compose(clips.pose[:, 0], error), motion=motion, history=clips.history)
    places, views = [], own_views(dynamics, clips.held, forgotten)
    recollection = dynamics.recollection
    for t in range(ticks):
        now = None
        if views is not None and recollection is not None:
            now = views._replace(held=views.held[:, t : t + 1])
            now = recollection.felt(now, place, recollection.walls(clips.z[:, t]))
        place = dynamics.move(place, clips.act[:, t], clips.phase[:, t], now)
        places.append(place)
    flat = Place(*(torch.stack(p, 1).flatten(0, 1) for p in zip(*places, strict=True)))
    glimpse = known = None
    if views is not None and recollection is not None:
        glimpse = recollection.glimpse(views, flat.pose)
        known = known_cells(glimpse, dynamics.grid).unflatten(0, (batch, ticks))
    steps = Step(*(s.unflatten(0, (batch, ticks)) for s in dynamics.step_to(flat, views, glimpse)))
    return Way(steps, flat.pose.unflatten(0, (batch, ticks)), views, known)


@torch.no_grad()
def own_views(dynamics: Dynamics, held: Held | None, forgotten: float = FORGOTTEN) -> Views | None:
    """What a clip's dream looks at, with walls as it sees them; None in a world that does not recall.

    In a part of the clips, `forgotten`, nothing is remembered, and in PATCHY of them some keyframes are not:
    who leaves what is held has to imagine a part of the view beside the rest. 0 for all of everything.
    """
    if held is None or dynamics.recollection is None:
        return None
    views = dynamics.recollection.own(held.views, held.z)
    if not forgotten:
        return views
    batch, _, count = views.held.shape
    luck, patchy = torch.rand(2, batch, 1, 1, device=views.held.device)
    share = torch.where(patchy < PATCHY, torch.rand_like(luck), 1.0) * (luck >= forgotten)
    kept = torch.rand(batch, 1, count, device=views.held.device) < share
    return views._replace(held=views.held & kept)
