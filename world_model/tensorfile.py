"""Tensors on disk: a strict subset of safetensors, with a hash over everything it says.

A tensor file is an ordinary safetensors file: 8 bytes header length, a JSON header, the raw bytes.
Its metadata carries `payload_sha256`, the SHA-256 of the canonical JSON
`{"metadata": {...without payload_sha256}, "tensors": [[name, dtype, shape], ...sorted by name]}`
followed by the raw bytes of the tensors in the same order. Names, dtypes and shapes are covered as
well as values, because one bit turns F16 into another dtype of the same size or swaps two names.

Reading never runs code from a file and never takes more memory than the file is long: the header is
checked in full, limits first, before any tensor is allocated.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from world_model.files import open_regular, parse_object, reason_of, refuse, write_atomic

HASH_KEY = "payload_sha256"

Expected = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
"""Every tensor name with its shape and dtype."""

_DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I8": torch.int8,
    "U8": torch.uint8,
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
_MAX_DIMS = 8
_MAX_ELEMENTS = 1 << 31  # also for empty tensors, so that [0, 2**40] is not taken for harmless


@dataclass(frozen=True)
class Limits:
    """What a reader accepts at most: bytes of the file, bytes of its header, number of tensors."""

    file_bytes: int
    header_bytes: int
    tensors: int


@dataclass(frozen=True)
class _Entry:
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str], limits: Limits) -> str:
    """Write atomically; returns the hash.

    Raises ValueError for what could not be read back, DataError where the disk refuses.
    """
    if len(tensors) > limits.tensors:
        raise ValueError(f"{len(tensors)} tensors; at most {limits.tensors} can be read back")
    entries, arrays, position = [], [], 0
    # Wide items first keeps every tensor aligned to its item size, as the format's readers like it.
    for name in sorted(tensors, key=lambda n: (-tensors[n].dtype.itemsize, n)):
        tensor = tensors[name].detach()
        if tensor.dtype not in _CODES or name == "__metadata__" or tensor.dim() > _MAX_DIMS:
            raise ValueError(f"tensor {name!r}, {tensor.dim()}-d {tensor.dtype}, has no place in this format")
        flat = tensor.cpu().contiguous().reshape(-1).view(torch.uint8)
        shape = tuple(tensor.shape)
        entries.append(_Entry(name, _CODES[tensor.dtype], shape, position, position + len(flat)))
        arrays.append(flat.numpy().data)
        position += len(flat)
    by_name = sorted(zip(entries, arrays, strict=True), key=lambda pair: pair[0].name)
    digest = _start_digest([entry for entry, _ in by_name], metadata)
    for _, array in by_name:
        digest.update(array)
    metadata = {**metadata, HASH_KEY: digest.hexdigest()}
    header = _make_header(entries, metadata)
    if len(header) > limits.header_bytes:
        raise ValueError(f"names and metadata take {len(header)} bytes, more than {limits.header_bytes}")
    write_atomic(path, [len(header).to_bytes(8, "little"), header, *arrays])
    return metadata[HASH_KEY]


def read_tensors(
    path: Path, limits: Limits, expected: Expected | None, *, finite: bool, wanted_hash: str | None = None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors on the CPU, and the metadata. WorldError for anything but a whole, unaltered file.

    `expected` None accepts any names, shapes and dtypes; `finite` refuses NaN and infinity;
    `wanted_hash` is what another file says that this one must carry.
    """
    try:
        with open_regular(path, limits.file_bytes) as file:
            entries, metadata, base = _read_header(path, file, limits)
            claimed = metadata.get(HASH_KEY, "")
            if not is_sha256(claimed):
                refuse(path, f"it carries no {HASH_KEY}, so damage could not be noticed")
            if wanted_hash not in (None, claimed):
                refuse(path, "it is not the file that world.json names in 'weights_sha256'")
            if expected is not None:
                _check_expected(path, entries, expected)
            tensors = _read_payload(path, file, entries, metadata, base)
    except OSError as error:
        refuse(path, reason_of(error))
    if finite:
        for name, tensor in tensors.items():
            if not is_finite(tensor):
                refuse(path, f"tensor {_short(name)} holds NaN or infinity")
    return tensors, metadata


def _read_header(
    path: Path, file: BufferedReader, limits: Limits
) -> tuple[list[_Entry], dict[str, str], int]:
    """Check everything that can be known without the payload. Entries come sorted by name."""
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > size - 8:
        refuse(path, "it is cut short, or not a safetensors file")
    if length > limits.header_bytes:
        refuse(path, f"its header has {length:,} bytes; at most {limits.header_bytes:,} are accepted")
    header = parse_object(path, file.read(length), finite=True)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        refuse(path, "its metadata is not a table of strings")
    if len(header) > limits.tensors:
        refuse(path, f"it lists {len(header):,} tensors; at most {limits.tensors:,} are accepted")
    entries = [_read_entry(path, name, item) for name, item in header.items()]
    position = 0
    for entry in sorted(entries, key=lambda e: (e.start, e.stop)):
        if entry.start != position:
            refuse(path, f"tensor {_short(entry.name)} overlaps another or leaves a gap")
        position = entry.stop
    if position != size - 8 - length:
        refuse(path, f"its tensors need {position:,} bytes, {size - 8 - length:,} are there")
    return sorted(entries, key=lambda e: e.name), metadata, 8 + length


def _read_entry(path: Path, name: str, item: Any) -> _Entry:
    if not isinstance(item, dict) or item.keys() != {"dtype", "shape", "data_offsets"}:
        refuse(path, f"the header entry of tensor {_short(name)} is malformed")
    dtype, shape, offsets = item["dtype"], item["shape"], item["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        refuse(path, f"tensor {_short(name)} has dtype {_short(dtype)}; accepted: {', '.join(_DTYPES)}")
    if not _naturals(shape) or len(shape) > _MAX_DIMS:
        refuse(path, f"tensor {_short(name)} has a malformed shape")
    # Empty axes count as 1: torch multiplies strides that way, and would overflow.
    if math.prod(max(n, 1) for n in shape) > _MAX_ELEMENTS:
        refuse(path, f"tensor {_short(name)} claims the absurd shape {_short(shape)}")
    if not _naturals(offsets) or len(offsets) != 2:
        refuse(path, f"tensor {_short(name)} has malformed offsets")
    start, stop = offsets
    if stop - start != math.prod(shape) * _DTYPES[dtype].itemsize:
        refuse(path, f"the offsets of tensor {_short(name)} disagree with its shape")
    return _Entry(name, dtype, tuple(shape), start, stop)


def _check_expected(path: Path, entries: list[_Entry], expected: Expected) -> None:
    found = {entry.name: entry for entry in entries}
    if missing := sorted(expected.keys() - found.keys()):
        refuse(path, f"{len(missing)} tensors are missing, the first is {_short(missing[0])}")
    if unexpected := sorted(found.keys() - expected.keys()):
        refuse(path, f"{len(unexpected)} tensors are unexpected, the first is {_short(unexpected[0])}")
    for name, (shape, dtype) in expected.items():
        entry = found[name]
        if (entry.shape, _DTYPES[entry.dtype]) != (tuple(shape), dtype):
            have = f"{list(entry.shape)} {_DTYPES[entry.dtype]}"
            refuse(path, f"tensor {_short(name)} is {have}, but {list(shape)} {dtype} is needed")


def _read_payload(
    path: Path, file: BufferedReader, entries: list[_Entry], metadata: Mapping[str, str], base: int
) -> dict[str, Tensor]:
    """Read straight into the tensors, so that the memory taken is the payload's and no more."""
    digest = _start_digest(entries, metadata)
    tensors = {}
    for entry in entries:
        flat = torch.empty(entry.stop - entry.start, dtype=torch.uint8)
        view = flat.numpy().data
        file.seek(base + entry.start)
        if file.readinto(view) != len(view):
            refuse(path, "it was cut short while being read")
        digest.update(view)
        tensors[entry.name] = flat.view(_DTYPES[entry.dtype]).view(entry.shape)
    if digest.hexdigest() != metadata[HASH_KEY]:
        refuse(path, f"its contents do not match its {HASH_KEY}: the file is damaged or was altered")
    return tensors


def _make_header(entries: Iterable[_Entry], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    for e in entries:
        header[e.name] = {"dtype": e.dtype, "shape": e.shape, "data_offsets": [e.start, e.stop]}
    text = json.dumps(header, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % 8)  # the format pads with spaces, so that the payload is aligned


def _start_digest(entries: Iterable[_Entry], metadata: Mapping[str, str]) -> hashlib._Hash:
    """A SHA-256 fed with all but the values; `entries` sorted by name. See the top of the file."""
    canonical = {
        "metadata": {key: value for key, value in metadata.items() if key != HASH_KEY},
        "tensors": [[e.name, e.dtype, e.shape] for e in entries],
    }
    return hashlib.sha256(json.dumps(canonical, sort_keys=True, separators=(",", ":")).encode())


def _short(value: object) -> str:
    """For messages: what a hostile file wrote, escaped and cut."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)


def is_sha256(text: str) -> bool:
    return len(text) == 64 and all(c in "0123456789abcdef" for c in text)


def is_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())
