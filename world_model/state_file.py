"""A moment of a dream as bytes, as save slots and clips keep it, read with suspicion.

A packed moment is a safetensors file of every tensor of the dream and its keyframes' thumbnails. Its
metadata is one JSON text, `moment`, and `payload_sha256`, the hash of that text and of all values. The
picture is not in it: it is painted from the latent. `rooms` packs into about 3.2 MB.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from world_model.config import CastConfig
from world_model.files import MIB, parse_object
from world_model.imagination import TICKS
from world_model.state import DreamState, WorldState, tensor_bytes
from world_model.types import Image, WorldError

SCHEMA = 1
MAX_BYTES = 64 * MIB
MAX_HEADER = MIB
MAX_NUMBER = 2**62
THUMBNAILS = "thumbnails"
_CODES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int16: "I16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_WHERE = Path("packed state")
"""Stands for a file's name in errors: whoever reads the file adds its own."""

Parts = dict[str, Any]
"""Tensors and numbers by dotted name."""


@dataclass(frozen=True)
class Bounds:
    """What a packed state of a world must fit: its sizes, and a state of the same world as a pattern."""

    pattern: DreamState
    actions: int
    phases: int
    window: int
    thumbnail: tuple[int, int, int]
    weights_sha256: str
    cast: CastConfig | None = None


def pack(state: WorldState) -> bytes:
    """The moment as bytes; see the top of the file."""
    parts = dict(_parts(state.dream, "dream"))
    tensors = {name: part for name, part in parts.items() if isinstance(part, Tensor)}
    ticks = sorted(state.thumbnails)
    if ticks:
        stacked = np.stack([state.thumbnails[tick] for tick in ticks])
        tensors[THUMBNAILS] = torch.from_numpy(stacked)
    moment = {
        "schema": SCHEMA,
        "weights_sha256": state.weights_sha256,
        "guard_events": state.guard_events,
        "numbers": {name: part for name, part in parts.items() if isinstance(part, int)},
        "thumbnails": ticks,
        # Kernels may round differently in another memory order, so the order comes back with the values.
        "channels_last": [name for name, t in tensors.items() if not t.is_contiguous()],
    }
    text = json.dumps(moment, sort_keys=True)
    # Copies, since parts of a moment may share memory, which the format refuses.
    tensors = {
        name: torch.clone(t.detach().cpu(), memory_format=torch.contiguous_format)
        for name, t in tensors.items()
    }
    return safetensors.torch.save(tensors, {"moment": text, "payload_sha256": _digest(text, tensors)})


def unpack(data: bytes, bounds: Bounds) -> tuple[DreamState, dict[int, Image], int]:
    """Dream, thumbnails and guard events. WorldError for anything but a whole state of this world."""
    entries, text, claimed = _read_header(data)
    moment = parse_object(_WHERE, text, finite=True)
    _check_moment(moment, bounds)
    pattern = dict(_parts(bounds.pattern, "dream"))
    _check_entries(entries, pattern, moment, bounds)
    try:
        tensors = safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError) as err:
        _refuse(f"its tensors cannot be read ({str(err)[:120]})")
    if _digest(text, tensors) != claimed:
        _refuse("its contents do not match its payload_sha256: it is damaged or was altered")
    thumbnails = _thumbnails(moment["thumbnails"], tensors.pop(THUMBNAILS, None))
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            _refuse(f"tensor {name!r} holds NaN or infinity")
    for name in moment["channels_last"]:
        if name in tensors and tensors[name].dim() == 4:
            tensors[name] = tensors[name].contiguous(memory_format=torch.channels_last)
    on = bounds.pattern.z.device
    parts: Parts = {name: t.to(on) for name, t in tensors.items()} | moment["numbers"]
    dream: DreamState = _rebuilt(bounds.pattern, "dream", parts)
    _check_values(dream, parts, thumbnails, bounds)
    return dream, thumbnails, moment["guard_events"]


def _read_header(data: bytes) -> tuple[dict[str, Any], str, str]:
    """(entries by tensor, moment, hash): everything that can be known before a tensor is made."""
    if len(data) > MAX_BYTES:
        _refuse(f"it has {len(data):,} bytes; at most {MAX_BYTES:,} are accepted")
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(len(data) - 8, MAX_HEADER):
        _refuse("it is cut short, or not a safetensors file")
    header = parse_object(_WHERE, data[8 : 8 + length], finite=True)
    metadata = header.pop("__metadata__", None)
    if not isinstance(metadata, dict) or metadata.keys() != {"moment", "payload_sha256"}:
        _refuse("it is not a saved state")
    text, claimed = metadata["moment"], metadata["payload_sha256"]
    if not isinstance(text, str) or not isinstance(claimed, str):
        _refuse("it is not a saved state")
    return header, text, claimed


def _check_moment(moment: dict[str, Any], bounds: Bounds) -> None:
    if type(moment.get("schema")) is not int or moment["schema"] < 1:
        _refuse("it has no whole number 'schema'")
    if moment["schema"] > SCHEMA:
        raise WorldError(f"{_WHERE}: schema {moment['schema']} is newer than {SCHEMA}: upgrade reverie")
    if moment.get("weights_sha256") != bounds.weights_sha256:
        raise WorldError(f"{_WHERE}: it belongs to another world or other weights")
    numbers = {name for name, part in _parts(bounds.pattern, "dream") if isinstance(part, int)}
    found = moment.get("numbers")
    if not isinstance(found, dict) or found.keys() != numbers or not all(map(_natural, found.values())):
        _refuse("its numbers are not those of a dream")
    if not _natural(moment.get("guard_events")):
        _refuse("'guard_events' is not a number")
    ticks, order = moment.get("thumbnails"), moment.get("channels_last")
    if not isinstance(ticks, list) or not all(map(_natural, ticks)) or len(set(ticks)) != len(ticks):
        _refuse("'thumbnails' is not a list of ticks")
    if not isinstance(order, list) or not all(isinstance(name, str) for name in order):
        _refuse("'channels_last' is not a list of names")


def _check_entries(entries: dict[str, Any], pattern: Parts, moment: dict[str, Any], bounds: Bounds) -> None:
    """Exactly the tensors of the pattern, in its shapes and dtypes."""
    wanted = {n: (list(p.shape), _CODES[p.dtype]) for n, p in pattern.items() if isinstance(p, Tensor)}
    if moment["thumbnails"]:
        wanted[THUMBNAILS] = ([len(moment["thumbnails"]), *bounds.thumbnail], "U8")
    if entries.keys() != wanted.keys():
        odd = sorted(entries.keys() ^ wanted.keys())[0]
        _refuse(f"tensor {odd[:80]!r} is {'unexpected' if odd in entries else 'missing'}")
    for name, (shape, code) in wanted.items():
        entry = entries[name] if isinstance(entries[name], dict) else {}
        found = entry.get("shape")
        if name == "dream.attended" and isinstance(found, list) and len(found) == 2:
            shape = [1, min(found[1], 64) if _natural(found[1]) else 0]  # differs from tick to tick
        if found != shape or entry.get("dtype") != code:
            _refuse(f"tensor {name!r} does not fit this world")


def _check_values(dream: DreamState, parts: Parts, thumbnails: dict[int, Image], bounds: Bounds) -> None:
    """Whole numbers that are used as indices, and what must agree with something else."""
    slots = dream.bank.size
    limits = {
        "dream.phase": (0, bounds.phases - 1),
        "dream.place.history": (-1, bounds.actions - 1),
        "dream.bank.born": (0, dream.tick),
        "dream.bank.uses": (0, MAX_NUMBER),
        "dream.attended": (0, slots - 1),
        "dream.trunk.filled": (0, bounds.window),
        "dream.vision.left": (0, TICKS),
    }
    if bounds.cast is not None:
        limits["dream.things.kind"] = (0, bounds.cast.kinds)
        limits["dream.things.look"] = (0, bounds.cast.looks)
        limits["dream.things.way"] = (0, bounds.cast.ways - 1)
    for name, (low, high) in limits.items():
        values = torch.as_tensor(parts.get(name, low))
        if values.numel() and not low <= int(values.min()) <= int(values.max()) <= high:
            _refuse(f"{name!r} lies outside of {low} .. {high}")
    born = dream.bank.born[0][dream.bank.filled[0]].tolist()
    if not born or set(born) != set(thumbnails):
        _refuse("its thumbnails are not those of its keyframes")


def _thumbnails(ticks: list[int], stacked: Tensor | None) -> dict[int, Image]:
    if stacked is None:
        return {}
    return {tick: image.numpy().copy() for tick, image in zip(ticks, stacked, strict=True)}


def _parts(value: Any, name: str) -> Iterator[tuple[str, Tensor | int]]:
    """Every tensor and number of nested dataclasses and tuples, by dotted name."""
    if isinstance(value, Tensor | int):
        yield name, value
    elif is_dataclass(value):
        for field in fields(value):
            yield from _parts(getattr(value, field.name), f"{name}.{field.name}")
    elif isinstance(value, tuple):
        for key, item in zip(_names(value), value, strict=True):
            yield from _parts(item, f"{name}.{key}")
    else:
        assert value is None, f"{name} is {type(value).__name__}, which a state cannot hold"


def _rebuilt(pattern: Any, name: str, parts: Parts) -> Any:
    """The pattern's structure with other tensors and numbers."""
    if isinstance(pattern, Tensor | int):
        return parts[name]
    if is_dataclass(pattern) and not isinstance(pattern, type):
        inner = {
            f.name: _rebuilt(getattr(pattern, f.name), f"{name}.{f.name}", parts) for f in fields(pattern)
        }
        return type(pattern)(**inner)
    if isinstance(pattern, tuple):
        items = [_rebuilt(p, f"{name}.{k}", parts) for k, p in zip(_names(pattern), pattern, strict=True)]
        return type(pattern)(*items) if hasattr(pattern, "_fields") else tuple(items)
    return None


def _names(value: tuple[Any, ...]) -> tuple[Any, ...]:
    """Field names of a named tuple, positions of another."""
    return tuple(getattr(value, "_fields", range(len(value))))


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensor_bytes(tensors[name]))
    return digest.hexdigest()


def _natural(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_NUMBER


def _refuse(reason: str) -> NoReturn:
    raise WorldError(f"{_WHERE}: {reason}")
