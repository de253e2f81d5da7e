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

IN_BYTES = ("imagination.", "tokenizer.encoder.", "tokenizer.decoder.layers.")
"""Matrices and kernels of these are kept in whole bytes in a world that has an imagination, for 16 MB, with a
scale for each output: SCALE is added to the name."""
SCALE = ".scale"


def load_model(folder: Path) -> WorldModel:
    """The model of a world folder, in float32. Raises WorldError that names the file and the reason."""
    config = world_config_from_json(read_world_json(folder)["config"])
    return build_model(config, load_world_weights(folder, expected_tensors(config)))


def build_model(config: WorldConfig, tensors: dict[str, Tensor]) -> WorldModel:
    """A model of `config` that holds `tensors`, without initialising weights first."""
    with torch.device("meta"):
        model = WorldModel(config)
    fresh = {k: from_bytes(v) if k == PAINT else v.float() for k, v in tensors.items()}
    for name in [k for k, v in tensors.items() if v.dtype == torch.int8]:
        scale = fresh.pop(name + SCALE)
        fresh[name] = fresh[name] * scale.view(-1, *[1] * (fresh[name].ndim - 1))
    model.load_state_dict(fresh, assign=True)
    return model


def stored_tensors(model: WorldModel) -> dict[str, Tensor]:
    """What a weights file holds of a model: matrices and kernels are kept as bfloat16."""
    wanted, tensors = expected_tensors(model.config), model.state_dict()
    paint = tensors.pop(PAINT, None)
    kept: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if wanted[name][1] == torch.int8:  # NaN has no byte: it is left for who saves to refuse
            parts = _in_bytes(tensor.float()) if is_finite(tensor) else (tensor.float(), tensor.new_ones(1))
            kept[name], kept[name + SCALE] = parts
        else:
            kept[name] = tensor.to(wanted[name][1])
    if paint is not None:
        kept[PAINT] = to_bytes(paint) if is_finite(paint) else paint
    return {k: v.contiguous().cpu() for k, v in kept.items()}


def _in_bytes(tensor: Tensor) -> tuple[Tensor, Tensor]:
    scale = tensor.flatten(1).abs().amax(1).clamp(min=1e-12) / 127
    whole = (tensor / scale.view(-1, *[1] * (tensor.ndim - 1))).round()
    return whole.to(torch.int8), scale


def expected_tensors(config: WorldConfig) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Every tensor that a weights file of this config must hold: name -> (shape, dtype)."""
    with torch.device("meta"):
        model = WorldModel(config)
    in_bytes = IN_BYTES if model.imagination is not None else ()
    found: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
    for name, tensor in model.state_dict().items():
        found[name] = (tuple(tensor.shape), _stored(name, tensor.ndim, in_bytes))
        if found[name][1] == torch.int8:
            found[name + SCALE] = ((len(tensor),), torch.float32)
    return found


def _stored(name: str, ndim: int, in_bytes: tuple[str, ...]) -> torch.dtype:
    if name == PAINT:
        return torch.uint8
    if ndim < 2:
        return torch.float32
    return torch.int8 if in_bytes and name.startswith(in_bytes) else torch.bfloat16
