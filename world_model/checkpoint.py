"""The files of a world folder and of a training run: weights, description, checkpoint to resume from.

How tensors lie on disk and how damage is noticed: tensorfile.py. How files are written whole: files.py.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from world_model.files import MIB, parse_object, read_json, refuse, write_json
from world_model.tensorfile import (
    HASH_KEY,
    Expected,
    Limits,
    is_finite,
    is_sha256,
    read_tensors,
    write_tensors,
)
from world_model.types import WorldError

__all__ = [
    "HASH_KEY",
    "SCHEMA",
    "WEIGHTS_NAME",
    "WORLD_NAME",
    "Expected",
    "load_training",
    "load_weights",
    "load_world_weights",
    "read_json",
    "read_world_json",
    "save_training",
    "save_weights",
    "write_json",
]

SCHEMA = 1
"""Version of world.json that this program writes and reads."""
WEIGHTS_NAME = "weights.safetensors"
WORLD_NAME = "world.json"

_WORLD_KEYS: dict[str, type] = {
    "name": str,
    "config": dict,
    "actions": list,
    "licence": str,
    "provenance": dict,
    "scores": dict,
    "weights_sha256": str,
}


_WEIGHTS = Limits(file_bytes=64 * MIB, header_bytes=MIB, tensors=4096)
# An optimiser keeps several tensors for each parameter, and the state sits in the header.
_TRAINING = Limits(file_bytes=1024 * MIB, header_bytes=16 * MIB, tensors=65536)


def save_weights(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> str:
    """Write `tensors` atomically; returns the payload hash (64 hex digits) that the file carries.

    Raises WorldError for a non-finite value, ValueError for a dtype or a number of tensors that could
    not be read back, DataError when the disk is full or read-only.
    """
    for name, tensor in tensors.items():
        if not is_finite(tensor):
            raise WorldError(f"{path}: tensor {name!r} holds NaN or infinity; nothing was saved.")
    return write_tensors(Path(path), tensors, dict(metadata or {}), _WEIGHTS)


def load_weights(
    path: str | os.PathLike[str], expected: Expected | None, max_bytes: int = 64 * MIB
) -> dict[str, Tensor]:
    """Read a weights file onto the CPU. `expected` None accepts any names, shapes and dtypes.

    Raises WorldError, naming the file and the reason, for anything but a whole, unaltered, finite file.
    """
    limits = Limits(max_bytes, _WEIGHTS.header_bytes, _WEIGHTS.tensors)
    return read_tensors(Path(path), limits, expected, finite=True)[0]


def save_training(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], state: dict[str, Any]) -> None:
    """Write a training checkpoint atomically.

    `state` is anything JSON holds (infinity allowed, as in a best loss not yet seen); tuples come back
    as lists and number keys as strings. Errors as `save_weights`, but values may be non-finite.
    """
    write_tensors(Path(path), tensors, {"state": json.dumps(state)}, _TRAINING)


def load_training(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_training` wrote, tensors on the CPU. Raises WorldError as `load_weights`."""
    path = Path(path)
    tensors, metadata = read_tensors(path, _TRAINING, None, finite=False)
    if "state" not in metadata:
        refuse(path, "it is not a training checkpoint (no training state inside)")
    return tensors, parse_object(path, metadata["state"], finite=False)


def read_world_json(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Read and check a world folder's description: its schema, its keys and their types.

    Raises WorldError; for a newer schema the message says to upgrade.
    """
    path = Path(folder) / WORLD_NAME
    world = read_json(path, MIB)
    schema = world.get("schema")
    if type(schema) is not int:  # True is an int to isinstance
        refuse(path, "it has no whole number 'schema'")
    if schema > SCHEMA:
        raise WorldError(
            f"{path}: made for a newer version (schema {schema}, this program reads {SCHEMA}). "
            "Upgrade reverie: pip install --upgrade reverie"
        )
    if schema < 1:
        refuse(path, f"schema {schema} never existed")
    for key, kind in _WORLD_KEYS.items():
        if key not in world:
            refuse(path, f"the key {key!r} is missing")
        if not isinstance(world[key], kind):
            refuse(path, f"{key!r} must be of type {kind.__name__}, not {type(world[key]).__name__}")
    if not is_sha256(world["weights_sha256"]):
        refuse(path, "'weights_sha256' is not 64 lower-case hexadecimal digits")
    return world


def load_world_weights(folder: str | os.PathLike[str], expected: Expected | None) -> dict[str, Tensor]:
    """The weights of a world folder, on the CPU; WorldError also when world.json names other weights."""
    wanted = read_world_json(folder)["weights_sha256"]
    path = Path(folder) / WEIGHTS_NAME
    return read_tensors(path, _WEIGHTS, expected, finite=True, wanted_hash=wanted)[0]
