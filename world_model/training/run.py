"""Training a world from a folder of episodes: stages in order, each continuing from the last.

A run is a folder: `world.json` (the resolved config), a checkpoint a stage, `metrics.jsonl`, previews,
cached latents. `publish` turns it into a world folder that `load_world` opens.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from world_model.checkpoint import (
    WEIGHTS_NAME,
    load_training,
    read_json,
    read_world_json,
    save_training,
    write_json,
)
from world_model.config import AudioConfig, CastConfig, WorldConfig, view_rows, world_config_from_json
from world_model.data.dataset import LatentDataset, Recall, cached_latents
from world_model.data.episodes import Episode, list_episodes, read_episode
from world_model.data.sources import make_source
from world_model.map import DETAIL_CHANNELS, FINE_DETAIL
from world_model.model import WorldModel
from world_model.recall import Lens
from world_model.training.align_stage import AlignStage
from world_model.training.audio_stage import AudioStage, CodecStage, hearing
from world_model.training.carry_stage import CarryStage, carrying
from world_model.training.cast_stage import cast_stage, playing
from world_model.training.decoder_stage import DECODED, DecoderStage, drawing
from world_model.training.dynamics_stage import STAGES, DynamicsStage, imagining
from world_model.training.feel_stage import FeelStage, feeling
from world_model.training.gauges_stage import GaugesStage
from world_model.training.grain_stage import GrainStage
from world_model.training.imagine_stage import ImagineStage
from world_model.training.light_stage import LightStage
from world_model.training.loop import Stage, StageConfig, Trainer
from world_model.training.place_stage import PlaceStage, map_making
from world_model.training.preview import RolloutPreview
from world_model.training.recall_stage import RecallStage, recollecting
from world_model.training.stride_stage import StrideStage, striding
from world_model.training.survey_stage import SurveyStage, surveying
from world_model.training.tokenizer_stage import TokenizerPreview, TokenizerStage, encode_frames
from world_model.types import FPS, DataError
from world_model.weights import load_model

ORDER = (
    "tokenizer",
    "place",
    "recall",
    "stride",
    "survey",
    "align",
    "sprites",
    "behaviour",
    "spotter",
    "gauges",
    "carry",
    "trunk",
    "head",
    "rollout",
    "decoder",
    "light",
    "grain",
    "imagine",
    "feel",
)
PLACE = ("place",)
"""Of these, what only a world with a map has."""
RECALL = ("recall", "survey", "light", "grain", "feel")
"""What only a world has that is new every time."""
IMAGINE = ("imagine",)
"""What only such a one has that makes up what it has not seen."""
STRIDE = ("stride",)
"""What a world has that is new every time, and one with a map that moves likewise."""
ALIGN = ("align",)
"""And what needs one of the two."""
CARRY = ("carry",)
"""What only a world needs in which other things move."""
GAUGES = ("gauges",)
"""What only a world needs in whose picture numbers stand."""
CAST = ("sprites", "behaviour", "spotter")
"""What only a world needs whose things are kept apart from its picture."""
SOUND = ("codec", "audio")
"""Stages after these in a world with sound."""
SHARES = {
    "tokenizer": 0.1,
    "place": 0.12,
    "align": 0.03,
    "recall": 0.09,
    "stride": 0.04,
    "survey": 0.14,
    "light": 0.02,
    "grain": 0.02,
    "sprites": 0.03,
    "behaviour": 0.1,
    "spotter": 0.05,
    "gauges": 0.03,
    "carry": 0.06,
    "trunk": 0.3,
    "head": 0.13,
    "rollout": 0.25,
    "decoder": 0.1,
    "imagine": 0.2,
    "feel": 0.05,
}
SHARES |= {"codec": 0.05, "audio": 0.05}
"""Of the minutes given to `all`."""
RATES = {
    "tokenizer": (1.5e-3, 0.015),
    "place": (1e-3, 0.015),
    "align": (1.5e-3, 0.015),
    "recall": (1e-3, 0.01),
    "stride": (1e-3, 0.01),
    "survey": (1e-3, 0.01),
    "light": (3e-3, 0.0),
    "grain": (3e-3, 0.0),
    "sprites": (1e-3, 0.0),
    "behaviour": (2e-3, 0.0),
    "spotter": (1e-3, 0.01),
    "gauges": (2e-3, 0.0),
    "carry": (1e-3, 0.015),
    "trunk": (1e-3, 0.012),
    "head": (1e-3, 0.012),
    "rollout": (4e-4, 0.004),
    "decoder": (5e-4, 0.004),
    "imagine": (1e-3, 0.012),
    "feel": (1e-3, 0.01),
    "codec": (1e-3, 0.01),
    "audio": (1e-3, 0.01),
}
"""Learning rates of AdamW and Muon."""
TILE_UNITS, EYE_UNITS, ROOM_UNITS, PIXEL_ASPECT = 64.0, 41.0, 128.0, 1.2
"""Doom's period of textures, height of the eye and of a room in map units, and how much higher than wide its
pixels are meant to be: a picture that ignores it shows everything so much taller."""

MIN_TICKS = 50
"""Of an episode: as long as the longest clip of any stage."""

RECALL_UNITS, RECALL_KEYFRAMES = 512.0, 48
"""What counts as half extent of maps that are all different, and how many keyframes it takes to hold one."""

IMAGINATION_CHANNELS = 96
"""Of the network that makes up what nobody has seen, in such a world."""

COUNTED_EVERY, OFTEN = 10, 0.1
"""Frames in which it is counted what is seen, and in how many a kind has to be seen on the average."""
CARRY_CHANNELS = 64
"""Of the network that tells depths, in a world whose source tells boxes around things that move."""

PAINT_WITH_SOUND = (10, 12, 12, 13, 13, 14)
"""Sound and a map's paint share the 16 MB of a world."""


@dataclass(frozen=True)
class TrainConfig:
    """What to train: `data` as `collect` wrote it, `run` the folder of the run."""

    world: str
    data: Path
    run: Path
    stages: tuple[str, ...] = ORDER
    minutes: float | None = None
    steps: int | None = None
    device: str = "cpu"
    seed: int = 0
    episodes: int | None = None
    """Use at most so many training episodes."""
    compile: bool = False
    start: Path | None = None
    """Another run, or a world's folder: a stage that begins takes from it the weights that have the same name
    and shape."""
    preview_seconds: float = 900.0
    previews: bool = True
    clips: int | None = None
    """Clips to a batch of the dynamics and the decoder, in place of a stage's own number."""
    plain: bool = False
    """A world with no memory but Mamba's state: what the others are measured against."""


def train(config: TrainConfig, say: Callable[[str], None] = print) -> None:
    """Runs the stages; those that are finished are skipped, one that was stopped goes on.

    Raises DataError when there are no episodes, ValueError for an unknown stage or budget.
    """
    unknown = set(config.stages) - {*ORDER, *SOUND}
    if unknown:
        known = ", ".join((*ORDER, *SOUND))
        raise ValueError(f"unknown stage {', '.join(sorted(unknown))}; there are {known} and all")
    if config.start is not None and not config.start.is_dir():
        raise DataError(f"--from {config.start}: there is no such folder; name a run or a world's folder")
    _init_distributed()
    torch.manual_seed(config.seed)  # the initial weights; every stage seeds its own noise again
    material = _Material(config, say)
    if config.stages == ORDER and material.world.config.audio is not None:
        config = dataclasses.replace(config, stages=(*ORDER, *SOUND))
    stages = config.stages
    foreign = foreign_stages(material.world.config)
    stages = tuple(s for s in stages if s not in foreign)
    for name in stages:
        torch.manual_seed(config.seed)
        stage = material.stage(name)
        minutes = config.minutes
        if minutes is not None and len(stages) > 1:
            minutes *= SHARES[name] / sum(SHARES[s] for s in stages)
        adamw, muon = RATES[name]
        budget = StageConfig(
            minutes=minutes,
            steps=config.steps,
            lr=adamw,
            muon_lr=muon,
            seed=config.seed + _rank(),
            preview_seconds=config.preview_seconds,
            previews=config.previews,
        )
        if not Trainer(stage, budget, config.run).run(say):
            say("stopped; the same command goes on from here")
            return


def foreign_stages(config: WorldConfig) -> set[str]:
    """Those of ORDER that this world has nothing for."""
    dynamics, foreign = config.dynamics, set[str]()
    if not dynamics.pose:
        foreign |= set(PLACE)
    if not dynamics.recall:
        foreign |= set(RECALL)
    if not (dynamics.recall and dynamics.imagination):
        foreign |= set(IMAGINE)
    if not dynamics.recall and not (dynamics.pose and dynamics.strides):
        foreign |= set(STRIDE)
    if not dynamics.carry:
        foreign |= set(CARRY)
    if config.cast is None:
        foreign |= set(CAST)
    if config.cast is None or not config.cast.gauges:
        foreign |= set(GAUGES)
    placed = dynamics.pose or (dynamics.recall and dynamics.align)
    return foreign if placed else foreign | set(ALIGN)


def load_run(run: Path, whole: bool = True) -> WorldModel:
    """The newest weights of a run: every stage's averaged weights laid over the earlier ones. Not `whole`, it
    may lack some that a world has by now."""
    world = WorldModel(world_config_from_json(read_json(run / "world.json")))
    for name in (*ORDER, *SOUND):
        _load_stage(world, run, name, whole)
    return world


class _Material:
    """Episodes, config, model, and what is derived from them when a stage first needs it."""

    def __init__(self, config: TrainConfig, say: Callable[[str], None]) -> None:
        self.config, self._say = config, say
        self._folders = {s: list_episodes(config.data, s) for s in ("train", "val")}
        self._folders["train"] = self._folders["train"][: config.episodes]
        self.train, self.val = (self._long_enough(s) for s in ("train", "val"))
        self.world = WorldModel(self._world_config())
        self._datasets: dict[str, LatentDataset] = {}

    def _long_enough(self, split: str) -> list[Episode]:
        """The episodes of a split that every stage can cut clips from; the rest is left out and told."""
        pairs = [(folder, read_episode(folder)) for folder in self._folders[split]]
        kept = [(folder, episode) for folder, episode in pairs if len(episode) >= MIN_TICKS]
        if not kept:
            root = self.config.data / split
            raise DataError(f"{root}: no episode has {MIN_TICKS} ticks; collect longer ones")
        if len(kept) < len(pairs):
            self._say(
                f"{len(pairs) - len(kept)} episodes of {split} have fewer than {MIN_TICKS} ticks: left out"
            )
        self._folders[split] = [folder for folder, _ in kept]
        return [episode for _, episode in kept]

    def stage(self, name: str) -> Stage[Any]:
        """The stage with the weights of all earlier ones."""
        device = self.config.device
        order = (*ORDER, *SOUND)
        if self.config.start is not None:
            _go_on_from(self.config.start, self.config.run, self.world.config, order[: order.index(name)])
        for earlier in order[: order.index(name)]:
            _load_stage(self.world, self.config.run, earlier)
        if name in STAGES:  # previews paint with the best decoder that there is
            _load_stage(self.world, self.config.run, "decoder")
        if self.config.start is not None:
            _begin_with(self.world, self.config.start, name)
        if name == "tokenizer":
            view = view_rows(self.world.config)
            return TokenizerStage(self.world.tokenizer, self.train, self.val, device, view=view)
        if name in SOUND and self.world.config.audio is None:
            raise DataError(f"{self.config.run} is a world without sound: its first episode has none")
        if name == "codec":
            assert self.world.audio is not None
            return CodecStage(self.world.audio.codec, self.train, self.val, device)
        if not (self.config.run / "tokenizer.safetensors").exists():
            raise DataError(f"{self.config.run} has no trained tokenizer; train --stage tokenizer first")
        self.world.to(device)
        if name == "place":
            return PlaceStage(self.world, self._latents("train"), self._latents("val"), device)
        if name == "audio":
            if not (self.config.run / "codec.safetensors").exists():
                raise DataError(f"{self.config.run} has no trained codec; train --stage codec first")
            return AudioStage(self.world, self._latents("train"), self._latents("val"), device)
        if name == "recall":
            return RecallStage(self.world, self._latents("train"), self._latents("val"), device)
        if name == "stride":
            return StrideStage(self.world, self._latents("train"), self._latents("val"), device)
        if name == "survey":
            return SurveyStage(self.world, self._latents("train"), self._latents("val"), device)
        if name in ("light", "grain"):
            stage = LightStage if name == "light" else GrainStage
            return stage(self.world, self._latents("train"), self._latents("val"), device)
        if name == "feel":
            return FeelStage(self.world, self._latents("train"), self._latents("val"), device)
        if name == "imagine":
            return ImagineStage(self.world, self._latents("train"), self._latents("val"), device)
        if name == "align":
            return AlignStage(self.world, self._latents("train"), self._latents("val"), device)
        if name in CAST:
            return cast_stage(name, self.world, self._latents("train"), self._latents("val"), device)
        if name == "gauges":
            return GaugesStage(self.world, self._latents("train"), self._latents("val"), device)
        if name == "carry":
            return CarryStage(self.world, self._latents("train"), self._latents("val"), device)
        preview = RolloutPreview(self.val)
        if name == "decoder":
            still = TokenizerPreview(self.val, torch.device(device), view_rows(self.world.config))
            clips = self.config.clips or DECODED
            return DecoderStage(self.world, self._latents(), preview, still, device, clips)
        clips = self.config.clips or STAGES[name].batch_size
        settings = dataclasses.replace(STAGES[name], compile=self.config.compile, batch_size=clips)
        self.world.requires_grad_(False)
        return DynamicsStage(settings, self.world, self._latents(), preview, device)

    def _latents(self, split: str = "train") -> LatentDataset:
        if split not in self._datasets:
            tokenizer = self.world.tokenizer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            episodes = {"train": self.train, "val": self.val}[split]
            self._say(f"encoding {len(episodes)} episodes of {split} (kept for later stages)")
            latents = cached_latents(
                episodes,
                self._folders[split],
                self.config.run / "latents",
                _digest(tokenizer.encoder.state_dict()),
                lambda frames: encode_frames(tokenizer, frames, torch.device(self.config.device)),
            )
            world = self.world.config
            data = LatentDataset(episodes, latents, world.pose_origin, world.pose_scale)
            recollection = self.world.dynamics.recollection
            if recollection is not None:
                lens = Lens(recollection.spread.detach().cpu().clone(), recollection.heights)
                data.remember(Recall(lens, recollection.aspect, world.dynamics.keyframes))
            self._datasets[split] = data
        return self._datasets[split]

    def _world_config(self) -> WorldConfig:
        """The run's config, made from the data the first time and read afterwards."""
        path = self.config.run / "world.json"
        if path.exists():
            return world_config_from_json(read_json(path))
        config = describe_world(self.config.world, self.train)
        if self.config.plain:
            config = without_memory(config)
        self.config.run.mkdir(parents=True, exist_ok=True)
        write_json(path, config.to_json())
        return config


def describe_world(name: str, episodes: list[Episode]) -> WorldConfig:
    """The config that fits a data set: its actions, its clock, the extent of its map."""
    header = episodes[0].header
    source = make_source(header["source"], sound=False)
    actions = source.actions
    room = float(getattr(source, "room_units", None) or ROOM_UNITS)
    view = float(getattr(source, "view_rows", None) or episodes[0].frames.shape[1])
    fields: dict[str, tuple[int, int, int, int]] = dict(getattr(source, "fields", {}))
    source.close()
    sound = episodes[0].sound
    audio = None if sound is None else AudioConfig(rate=FPS * sound.shape[1])
    config = WorldConfig(name, actions, phases=header["phases"], audio=audio)
    if episodes[0].pose is None or episodes[0].depth is None:
        return dataclasses.replace(config, dynamics=dataclasses.replace(config.dynamics, pose=False))
    # A map in the weights is one map: where a source makes another for every seed, memory is the map.
    if "description" in header:
        return _recalling(config, room)
    places = np.concatenate([e.pose[:, :2] for e in episodes if e.pose is not None])
    low, high = places.min(0), places.max(0)
    centre = (low + high) / 2
    scale = round(float((high - low).max() / 2), 1)
    up, carries = PIXEL_ASPECT / scale, episodes[0].labels is not None
    cast = _cast(episodes, fields)
    return dataclasses.replace(
        config,
        dynamics=dataclasses.replace(
            config.dynamics,
            tile=TILE_UNITS / scale,
            heights=(-EYE_UNITS * up, (room - EYE_UNITS) * up),
            horizon=view / 2 / episodes[0].frames.shape[1],
            strides=carries,  # where nothing moves walls alone stop a player, and a motion model feels those
            carry=CARRY_CHANNELS if carries and cast is None else 0,
            paint_bits=config.dynamics.paint_bits if audio is None else PAINT_WITH_SOUND,
        ),
        tokenizer=dataclasses.replace(
            config.tokenizer, detail_dim=(DETAIL_CHANNELS, FINE_DETAIL), blend=carries, glass=cast is not None
        ),
        pose_origin=(round(float(centre[0]), 1), round(float(centre[1]), 1)),
        pose_scale=scale,
        cast=cast,
    )


def _cast(episodes: list[Episode], fields: dict[str, tuple[int, int, int, int]]) -> CastConfig | None:
    """The kinds of things that are told and often seen; None where there are none."""
    seen: Counter[str] = Counter()
    frames = 0
    for episode in episodes:
        if episode.things is None or episode.labels is None:
            return None
        told = episode.header["labels"]
        for boxes in np.asarray(episode.labels[::COUNTED_EVERY]):
            seen.update({told[k - 1] for k in boxes[:, 0].tolist() if k})
            frames += 1
    known = {name for episode in episodes for name in episode.header["things"]}
    names = tuple(sorted(n for n, count in seen.items() if n in known and count > OFTEN * frames))
    gauges = tuple(fields) if episodes[0].variables is not None else ()
    boxes = tuple(number for name in gauges for number in fields[name])
    return CastConfig(names, gauges=gauges, boxes=boxes) if names else None


def without_memory(config: WorldConfig) -> WorldConfig:
    """The same world with nothing to remember by but Mamba's state. Its tokenizer stays what it is."""
    dynamics = dataclasses.replace(
        config.dynamics, pose=False, recall=False, imagination=0, window=1, keyframes=1, retrieved=0
    )
    return dataclasses.replace(config, dynamics=dynamics)


def _recalling(config: WorldConfig, room: float) -> WorldConfig:
    """The config of a world whose map is what its keyframes hold."""
    up = PIXEL_ASPECT / RECALL_UNITS
    dynamics = dataclasses.replace(
        config.dynamics,
        pose=False,
        recall=True,
        imagination=IMAGINATION_CHANNELS,
        align=False,  # dead reckoning by memory is better than what an hour of training tells it (LOG.md)
        keyframes=RECALL_KEYFRAMES,
        heights=(-EYE_UNITS * up, (room - EYE_UNITS) * up),
    )
    return dataclasses.replace(
        config,
        dynamics=dynamics,
        tokenizer=dataclasses.replace(config.tokenizer, detail_dim=(DETAIL_CHANNELS, FINE_DETAIL)),
        pose_scale=RECALL_UNITS,
    )


def _load_stage(world: WorldModel, run: Path, name: str, whole: bool = True) -> None:
    """Lays the averaged weights of a stage, if it was trained, over the world's."""
    average = _averaged(run, name)
    if average is None:
        return
    part = _part(world, name)
    assert part is not None, f"{run} is of a world with poses or sound that this one lacks"
    own = part.state_dict()
    part.load_state_dict({k: v for k, v in average.items() if k in own}, strict=whole)


def _begin_with(world: WorldModel, start: Path, name: str) -> None:
    """Takes from another run or world what a stage can use: what has the same name and shape."""
    part = _part(world, name)
    assert part is not None
    if (start / WEIGHTS_NAME).exists():
        other = load_model(start)
        theirs = _part(other, name)
        found = {} if theirs is None else theirs.state_dict()
    else:  # as that stage left it: what later ones made of it is not where it ended
        found = _averaged(start, name) or {}
        if not found:
            return
        other = load_run(start, whole=False)
    own = part.state_dict()
    fitting = {k: v for k, v in found.items() if k in own and own[k].shape == v.shape}
    part.load_state_dict(fitting, strict=False)
    if name in STAGES and fitting and not _kindred(world, other):
        world.dynamics.unlearn_seen()


def _go_on_from(start: Path, run: Path, config: WorldConfig, earlier: tuple[str, ...]) -> None:
    """Gives a run that lacks earlier stages those of a world of the same config: who has a world and its data
    can train it on. Does nothing where `start` is another run, another kind of world, or one whose latents
    mean something else."""
    lacking = foreign_stages(config) | {"rollout"} | (set() if config.audio is not None else set(SOUND))
    missing = [n for n in earlier if n not in lacking and not (run / f"{n}.safetensors").exists()]
    if not missing or not (start / WEIGHTS_NAME).exists():
        return
    world = load_model(start)
    own, theirs = _averaged(run, "tokenizer"), world.tokenizer.state_dict()
    foreign = own is not None and any(k not in theirs or not torch.equal(own[k], theirs[k]) for k in own)
    alike = dataclasses.replace(world.config, name=config.name, head_steps=config.head_steps)
    if foreign or alike != config:
        return
    costs = read_world_json(start)["provenance"].get("stages", {})
    for name in missing:
        part, cost = _part(world, name), costs.get(name, {"stage": name, "step": 0, "seconds": 0.0})
        assert part is not None
        tensors = {f"{kind}/{k}": v for k, v in part.state_dict().items() for kind in ("model", "average")}
        tensors = {k: v.float().contiguous().clone() for k, v in tensors.items()}
        tensors["rng/torch"] = torch.get_rng_state()
        save_training(run / f"{name}.safetensors", tensors, {k: cost[k] for k in ("step", "seconds")})
        with (run / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(cost) + "\n")


KINDRED = 0.5


def _kindred(world: WorldModel, other: WorldModel) -> bool:
    """Whether one sense of place grew from the other: then what it shows is read as it was. Weights that were
    drawn apart are at right angles."""
    own, theirs = world.dynamics.state_dict(), other.dynamics.state_dict()
    names = [k for k in own if ".glance." in k and own[k].ndim > 1]
    if not names or any(k not in theirs or theirs[k].shape != own[k].shape for k in names):
        return False
    one, two = (torch.cat([part[k].flatten() for k in names]) for part in (own, theirs))
    return float(torch.cosine_similarity(one, two.to(one), dim=0)) > KINDRED


def _averaged(run: Path, name: str) -> dict[str, Tensor] | None:
    path = run / f"{name}.safetensors"
    if not path.exists():
        return None
    tensors, _ = load_training(path)
    return {k.removeprefix("average/"): v for k, v in tensors.items() if k.startswith("average/")}


def _part(world: WorldModel, stage: str) -> nn.Module | None:
    """What a stage trains."""
    match stage:
        case "tokenizer":
            return world.tokenizer
        case "decoder":
            return drawing(world)
        case "place":
            return map_making(world)
        case "align":
            return world.aligner
        case "recall":
            return recollecting(world) if world.dynamics.recollection is not None else None
        case "stride":
            return striding(world) if world.dynamics.stride is not None else None
        case "survey":
            return surveying(world) if world.dynamics.recollection is not None else None
        case "light" | "grain":
            recollection = world.dynamics.recollection
            return None if recollection is None else getattr(recollection, stage)
        case "feel":
            return feeling(world) if world.dynamics.recollection is not None else None
        case "imagine":
            return world.imagination
        case "carry":
            return carrying(world) if world.dynamics.carry is not None else None
        case "sprites" | "behaviour" | "spotter":
            return playing(world)[stage] if world.cast is not None else None
        case "gauges":
            return world.gauges
        case "codec" | "audio":
            return hearing(world)[stage]
        case _:
            return imagining(world, STAGES[stage])


def _digest(tensors: dict[str, Tensor]) -> str:
    total = {k: [round(float(v.double().sum()), 6), list(v.shape)] for k, v in sorted(tensors.items())}
    return json.dumps(total)


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _init_distributed() -> None:
    """Joins the group that torchrun set up, if it did."""
    if "RANK" in os.environ and not torch.distributed.is_initialized():
        torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
