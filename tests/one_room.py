"""A synthetic room, and keyframes of it: what is remembered of a place can be checked against the place."""

from __future__ import annotations

import numpy as np
import torch

from world_model.recall import Lens, Views, centres, colours, finer, look, onto_plan

LENS = Lens(torch.tensor(1.2), (-0.1, 0.2))
ASPECT = 0.625
ROOM = 1.0
"""Half the side of a square room around the origin."""


def room_depth(pose: torch.Tensor, columns: int) -> torch.Tensor:
    """Depth (columns,) of the walls of the room, perpendicular to the picture."""
    across = centres(columns, pose.device) * LENS.spread
    way = onto_plan(torch.ones(columns), across, torch.tensor([0.0, 0.0, float(pose[2])]))
    reach = (ROOM * way.sign() - pose[:2]) / torch.where(way.abs() < 1e-6, 1e-6, way)
    return reach.amin(-1)


def room_picture(pose: torch.Tensor, rows: int = 160, columns: int = 256) -> torch.Tensor:
    """uint8 (3, rows, columns): every surface is painted with a smooth pattern of where it is."""
    depth = room_depth(pose, columns)
    down = centres(rows, pose.device)[:, None] * ASPECT * LENS.spread
    level = torch.where(down > 0, 0.1, 0.2) / down.abs()
    met = torch.minimum(depth[None], level)
    xy = onto_plan(met, met * centres(columns, pose.device) * LENS.spread, pose)
    paint = torch.stack((xy[..., 0], xy[..., 1], -down * met * 5))
    return ((paint * 5).sin() * 100 + 128).round().to(torch.uint8)


def keyframes(poses: list[list[float]], columns: int = 64) -> Views:
    pose = torch.tensor(poses)
    return Views(
        torch.stack([room_picture(p) for p in pose])[None],
        pose[None],
        torch.stack([room_depth(p, columns) for p in pose])[None],
        torch.ones(1, 1, len(poses), dtype=torch.bool),
    )


def remembered(views: Views, pose: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """What is remembered from a pose, uint8 (160, 256, 3), and where anything is (160, 256)."""
    at = torch.tensor(pose)[None, None]
    coarse = look(views, LENS, at, 40, 64, ASPECT)
    found = finer(views, LENS, at, coarse, 4, ASPECT)
    picture = (colours(views.image, found)[0, 0].permute(1, 2, 0) + 1) * 127.5
    return picture.round().clamp(0, 255).to(torch.uint8).numpy(), found.known[0, 0].numpy()


def error(shown: np.ndarray, pose: list[float], where: np.ndarray) -> float:
    real = room_picture(torch.tensor(pose)).permute(1, 2, 0).numpy()
    return float(np.abs(shown.astype(float) - real)[where].mean())
