"""The model of a world's folder: which tensors it has, and the model that holds them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from world_model.checkpoint import load_world_weights, read_world_json
from world_model.config import WorldConfig, world_config_from_json
from world_model.model import WorldModel
from world_model.sprites import from_bytes, to_bytes
from world_model.tensorfile import is_finite

PAINT = "cast.sprites.paint"
"""Kept in bytes, as pictures are."""


def load_model(folder: Path) -> WorldModel:
    """The model of a world folder, in float32. Raises WorldError that names the file and the reason."""
    config = world_config_from_json(read_world_json(folder)["config"])
    return build_model(config, load_world_weights(folder, expected_tensors(config)))


def build_model(config: WorldConfig, tensors: dict[str, Tensor]) -> WorldModel:
    """A model of `config` that holds `tensors`, without initialising weights first."""
    with torch.device("meta"):
        model = WorldModel(config)
    fresh = {k: from_bytes(v) if k == PAINT else v.float() for k, v in tensors.items()}
    model.load_state_dict(fresh, assign=True)
    return model


def stored_tensors(model: WorldModel) -> dict[str, Tensor]:
    """What a weights file holds of a model: matrices and kernels are kept as bfloat16."""
    wanted, tensors = expected_tensors(model.config), model.state_dict()
    paint = tensors.pop(PAINT, None)
    kept = {k: v.to(wanted[k][1]) for k, v in tensors.items()}
    if paint is not None:  # NaN has no byte: it is left for who saves to refuse
        kept[PAINT] = to_bytes(paint) if is_finite(paint) else paint
    return {k: v.contiguous().cpu() for k, v in kept.items()}


def expected_tensors(config: WorldConfig) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Every tensor that a weights file of this config must hold: name -> (shape, dtype)."""
    with torch.device("meta"):
        model = WorldModel(config)
    return {name: (tuple(t.shape), _stored(name, t.ndim)) for name, t in model.state_dict().items()}


def _stored(name: str, ndim: int) -> torch.dtype:
    if name == PAINT:
        return torch.uint8
    return torch.bfloat16 if ndim >= 2 else torch.float32
