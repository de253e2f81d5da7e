"""Files written whole and read with suspicion: the ground that every saved thing stands on.

Reading takes regular files of bounded size only, and strict JSON. Writing goes through a temporary
file in the same folder, so that a crash at any moment leaves the old file or the new one.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import secrets
import stat
import time
from collections.abc import Iterable, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any, NoReturn

from world_model.types import DataError, WorldError

MIB = 1 << 20

_MAX_DEPTH = 64
_STALE_SECONDS = 3600.0


def write_json(path: str | os.PathLike[str], obj: Mapping[str, Any]) -> None:
    """Write `obj` as indented JSON, atomically. ValueError on NaN, DataError where the disk refuses."""
    text = json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomic(Path(path), [text.encode()])


def read_json(path: str | os.PathLike[str], max_bytes: int = 4 * MIB) -> dict[str, Any]:
    """Read a JSON object. WorldError when missing, broken, too large, too deep, or not an object."""
    path = Path(path)
    try:
        with open_regular(path, max_bytes) as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        refuse(path, reason_of(error))
    if len(data) > max_bytes:
        refuse(path, f"it is larger than {max_bytes:,} bytes")
    return parse_object(path, data, finite=True)


def open_regular(path: Path, max_bytes: int) -> BufferedReader:
    """Open for reading; the kind is checked before, as opening a pipe waits for ever."""
    if not stat.S_ISREG(path.stat().st_mode):
        refuse(path, "it is not a regular file")
    file = path.open("rb")
    size = os.fstat(file.fileno()).st_size
    if size > max_bytes:
        file.close()
        refuse(path, f"it has {size:,} bytes; at most {max_bytes:,} are accepted")
    return file


def parse_object(path: Path, data: bytes | str, *, finite: bool) -> dict[str, Any]:
    """Strict JSON: UTF-8, an object, no key twice, no deep nesting, NaN and infinity only on request."""
    try:
        text = data.decode("utf-8") if isinstance(data, bytes) else data
        constant = _no_constant if finite else float
        obj = json.loads(text, object_pairs_hook=_unique, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        refuse(path, f"its JSON is broken ({str(error)[:120]})")
    if not isinstance(obj, dict):
        refuse(path, "its JSON is not an object")
    level: list[Any] = [obj]
    for _ in range(_MAX_DEPTH):
        level = [child for node in level for child in _children(node)]
        if not level:
            return obj
    refuse(path, f"its JSON is nested more than {_MAX_DEPTH} deep")


def _children(node: Any) -> Iterable[Any]:
    items = node.values() if isinstance(node, dict) else node
    return (item for item in items if isinstance(item, (dict, list)))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    obj = dict(pairs)
    if len(obj) != len(pairs):
        raise ValueError("a key appears twice")
    return obj


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")


def write_atomic(path: Path, chunks: Iterable[bytes | memoryview]) -> None:
    """All of it or nothing: a reader, or a crash at any moment, finds the old file or the new one."""
    # Opened by hand rather than by tempfile, whose files nobody but the owner may read.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(path)
        try:
            with open(temporary, "xb") as file:
                for chunk in chunks:
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
    except OSError as error:
        raise DataError(
            f"{path}: could not be saved ({reason_of(error)}). Free some disk space, or choose a folder "
            "that can be written to. What was there before is unchanged."
        ) from error


def _remove_stale(path: Path) -> None:
    """Leftovers of saves that were killed; a save in progress is younger than the limit."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with contextlib.suppress(FileNotFoundError):  # another process may have been quicker
            if time.time() - leftover.stat().st_mtime > _STALE_SECONDS:
                leftover.unlink()


def _sync_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut.

    The file is complete by now, so a system that cannot do this (Windows, some network disks) is no error.
    """
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def refuse(path: Path, reason: str) -> NoReturn:
    """Raise the one error that damaged and hostile files end in."""
    raise WorldError(f"{path}: {reason}. Put back a good copy of the file.")


def reason_of(error: OSError) -> str:
    """The system's words without the path, which the message names already."""
    return error.strerror or type(error).__name__
