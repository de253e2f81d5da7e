"""A world small enough for tests: the real code, random weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from world_model.config import DynamicsConfig, TokenizerConfig, WorldConfig
from world_model.data.episodes import Episode, write_episode
from world_model.map import DETAIL_CHANNELS, FINE_DETAIL
from world_model.model import WorldModel
from world_model.scenes import Scene, save_scene
from world_model.types import Action
from world_model.world import save_world

WIDTH, HEIGHT = 64, 32
LATENT_GRID = (2, 4)
ACTIONS = (Action("idle"), Action("forward", ("up",)), Action("left", ("left",)), Action("right", ("right",)))

TINY = WorldConfig(
    "tiny",
    ACTIONS,
    phases=5,
    tokenizer=TokenizerConfig(WIDTH, HEIGHT, 4, (8, 8, 16), (16, 16, 8), (DETAIL_CHANNELS, FINE_DETAIL)),
    dynamics=DynamicsConfig(
        conv_dim=16,
        conv_blocks=1,
        d_model=32,
        d_state=4,
        head_dim=16,
        layers=2,
        attention_heads=2,
        global_tokens=1,
        window=4,
        keyframes=6,
        retrieved=2,
        pose_octaves=2,
        plan_size=32,
        paint_bits=(4, 5, 5, 6, 5, 6),
        head_dim_conv=16,
        head_blocks=1,
    ),
)


RECALLING = replace(
    TINY, dynamics=replace(TINY.dynamics, pose=False, recall=True, recalled=3, heights=(-0.1, 0.2))
)
"""The same without a map: it looks at what its keyframes hold."""


IMAGINING = replace(RECALLING, dynamics=replace(RECALLING.dynamics, imagination=12))
"""And it makes up what they do not show."""


STRIDING = replace(TINY, dynamics=replace(TINY.dynamics, strides=True))
"""With a map, and moved by a stride instead of by a network that feels for walls."""


def tiny_model(seed: int = 0, config: WorldConfig = TINY) -> WorldModel:
    """Random weights everywhere, also where training starts from zero, so that every path matters."""
    torch.manual_seed(seed)
    model = WorldModel(config)
    for parameter in model.parameters():
        if not bool(parameter.detach().any()):
            torch.nn.init.normal_(parameter, std=0.2)
    if model.dynamics.place is not None:
        torch.nn.init.constant_(
            model.dynamics.place.map.surfaces.walls.embed, 0.02
        )  # room to walk everywhere
    return model


def tiny_frames(ticks: int, seed: int = 0) -> np.ndarray:
    """Smooth moving pictures, uint8 (ticks, H, W, 3)."""
    rng = np.random.default_rng(seed)
    wave = np.linspace(0, 2 * np.pi, WIDTH)[None, None, :, None]
    time = np.arange(ticks)[:, None, None, None] / 5 + rng.uniform(0, 6)
    colour = rng.uniform(0.5, 2.0, (1, 1, 1, 3))
    images = 128 + 100 * np.sin(wave * colour + time) * np.ones((1, HEIGHT, 1, 1))
    return images.astype(np.uint8)


def tiny_world(folder: Path, seed: int = 0, config: WorldConfig = TINY) -> Path:
    """A published world folder with four scenes."""
    save_world(folder, tiny_model(seed, config), "test", {"source": "none"}, {})
    for i in range(4):
        actions = np.arange(5) % len(ACTIONS)
        save_scene(folder, Scene(f"scene{i + 1}", tiny_frames(6, seed=i), actions, phase=i))
    return folder


def tiny_data(root: Path, episodes: int = 3, ticks: int = 40) -> Path:
    """A data set as `collect` writes it."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for i in range(episodes):
            episode = Episode(
                {"source": "rooms", "licence": "test", "actions": [a.name for a in ACTIONS], "phases": 5},
                frames=tiny_frames(ticks + 1, seed=i),
                actions=rng.integers(0, len(ACTIONS), ticks).astype(np.int16),
                phases=(np.arange(ticks) % 5).astype(np.uint8),
                pose=np.cumsum(rng.normal(size=(ticks + 1, 3)), 0).astype(np.float32),
                sound=None,
                rewards=np.zeros(ticks, np.float32),
                depth=rng.uniform(1, 4, (ticks + 1, HEIGHT // 4, WIDTH // 4)).astype(np.float16),
            )
            write_episode(root / split / f"ep_{i:010d}", episode)
    return root
