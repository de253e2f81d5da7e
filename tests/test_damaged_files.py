"""Files that are damaged or hostile: one clear error, no code run, little memory taken."""

from __future__ import annotations

import math
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpoint_cases import entry, make_world, raw, refuses, same, small
from world_model.checkpoint import (
    HASH_KEY,
    WEIGHTS_NAME,
    WORLD_NAME,
    load_training,
    load_weights,
    load_world_weights,
    read_json,
    save_training,
    save_weights,
)
from world_model.types import WorldError

ROOT = Path(__file__).resolve().parents[1]
POSIX = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and kill")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / WEIGHTS_NAME
    save_weights(path, small())
    return path


# ---- damage ----


def test_truncation_at_every_byte_is_refused(weights: Path) -> None:
    whole = weights.read_bytes()
    for length in range(len(whole)):
        weights.write_bytes(whole[:length])
        refuses(lambda: load_weights(weights, None), weights)
    weights.write_bytes(whole + b"\0")
    refuses(lambda: load_weights(weights, None), weights)


def test_every_flipped_bit_of_the_payload_is_refused(weights: Path) -> None:
    whole = weights.read_bytes()
    payload = 8 + int.from_bytes(whole[:8], "little")
    assert len(whole) - payload == 24 + 4 + 8
    for bit in range(payload * 8, len(whole) * 8):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        weights.write_bytes(data)
        refuses(lambda: load_weights(weights, None), weights, "damaged or was altered")


EDITS = st.lists(
    st.tuples(
        st.sampled_from(["set", "flip", "insert", "delete"]), st.integers(0, 1 << 16), st.binary(max_size=3)
    ),
    min_size=1,
    max_size=4,
)
TOKENS = st.sampled_from(
    [b"F16", b"BF16", b"I64", b"-1", b"1e9", b"null", b"[]", b"{}", b'"', b"0", b"a.weight", b"b"]
)


def edited(data: bytes, edits: list[tuple[str, int, bytes]]) -> bytes:
    out = bytearray(data)
    for kind, where, value in edits:
        i = where % max(len(out), 1)
        if kind == "set":
            out[i : i + len(value)] = value
        elif kind == "flip":
            out[i : i + 1] = bytes([out[i] ^ 1 << (where >> 8) % 8]) if out else b""
        elif kind == "insert":
            out[i:i] = value
        else:
            del out[i : i + len(value)]
    return bytes(out)


def refused_or_identical(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    try:
        loaded = load_weights(path, None)
    except WorldError as error:
        assert str(path) in str(error)
    else:
        assert same(loaded, small())


@settings(max_examples=300, deadline=None, database=None)
@given(edits=EDITS)
def test_mutated_bytes_are_refused_or_harmless(tmp_path_factory: pytest.TempPathFactory, edits: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "mutated"
    save_weights(path, small())
    refused_or_identical(path, edited(path.read_bytes(), edits))


@settings(max_examples=300, deadline=None, database=None)
@given(old=TOKENS, new=TOKENS, fix_length=st.booleans())
def test_mutated_headers_are_refused_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, old: bytes, new: bytes, fix_length: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "mutated header"
    save_weights(path, small())
    whole = path.read_bytes()
    end = 8 + int.from_bytes(whole[:8], "little")
    header = whole[8:end].replace(old, new, 1)
    length = len(header) if fix_length else end - 8
    refused_or_identical(path, length.to_bytes(8, "little") + header + whole[end:])


def test_a_swap_of_names_or_dtypes_is_found(weights: Path) -> None:
    whole = weights.read_bytes()
    assert b'"BF16"' in whole
    for old, new in ((b'"BF16"', b'"F16" '), (b'"c"', b'"d"')):
        weights.write_bytes(whole.replace(old, new, 1))
        refuses(lambda: load_weights(weights, None), weights, "do not match")


@pytest.mark.parametrize(
    ("header", "payload", "word"),
    [
        ({"a": entry("F32", [1], 0, 4)}, b"\0" * 4, HASH_KEY),
        ({"__metadata__": {HASH_KEY: "00"}, "a": entry("F32", [1], 0, 4)}, b"\0" * 4, HASH_KEY),
        ({"__metadata__": {HASH_KEY: "0" * 64}, "a": entry("F32", [1], 0, 4)}, b"\0" * 4, "do not match"),
        ({"__metadata__": {"n": 1}}, b"", "table of strings"),
        ({"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 0, 4)}, b"\0" * 4, "overlaps"),
        ({"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 8, 12)}, b"\0" * 12, "gap"),
        ({"a": entry("F32", [1], 0, 4)}, b"\0" * 8, "bytes"),
        ({"a": entry("F32", [1], 4, 0)}, b"", "disagree"),
        ({"a": entry("F32", [2], 0, 4)}, b"\0" * 4, "disagree"),
        ({"a": entry("F32", [-1], 0, 4)}, b"\0" * 4, "malformed shape"),
        ({"a": entry("F32", [True], 0, 4)}, b"\0" * 4, "malformed shape"),
        ({"a": entry("F32", [1] * 9, 0, 4)}, b"\0" * 4, "malformed shape"),
        ({"a": entry("F32", "1", 0, 4)}, b"\0" * 4, "malformed shape"),
        ({"a": entry("F32", [0, 1 << 40], 0, 0)}, b"", "absurd shape"),
        ({"a": entry("F32", [1 << 40], 0, 1 << 42)}, b"", "absurd shape"),
        ({"a": entry("F64", [1], 0, 8)}, b"\0" * 8, "dtype"),
        ({"a": entry("\ud800", [1], 0, 8)}, b"\0" * 8, "dtype"),
        ({"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}, b"\0" * 4, "dtype"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0.0, 4.0]}}, b"\0" * 4, "offsets"),
        ({"a": {"dtype": "F32", "shape": [1]}}, b"", "malformed"),
        ({"a": None}, b"", "malformed"),
        (b'{"a": 1, "a": 2}', b"", "twice"),
        (b"[1]", b"", "not an object"),
        (b'{"a": NaN}', b"", "NaN"),
        (b'{"a": "\xff"}', b"", "broken"),
        (b"[" * 100_000, b"", "broken"),
        (b'{"a": ' + b"9" * 100_000 + b"}", b"", "broken"),
    ],
)
def test_bad_headers_are_refused(tmp_path: Path, header: object, payload: bytes, word: str) -> None:
    path = tmp_path / WEIGHTS_NAME
    path.write_bytes(raw(header, payload))
    refuses(lambda: load_weights(path, None), path, word)


def test_foreign_weights_without_a_hash_are_refused(tmp_path: Path) -> None:
    safetensors.torch.save_file(small(), tmp_path / "w")
    refuses(lambda: load_weights(tmp_path / "w", None), tmp_path / "w", HASH_KEY)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_weights_are_refused_even_with_a_right_hash(tmp_path: Path, bad: float) -> None:
    save_training(tmp_path / "w", {"a": torch.tensor([1.0, bad], dtype=torch.bfloat16)}, {})
    refuses(lambda: load_weights(tmp_path / "w", None), tmp_path / "w", "NaN or infinity")


def test_too_many_tensors_are_refused_even_with_a_right_hash(tmp_path: Path) -> None:
    save_training(tmp_path / "w", {str(i): torch.zeros(1) for i in range(5000)}, {})
    refuses(lambda: load_weights(tmp_path / "w", None), tmp_path / "w", "5,000 tensors; at most 4,096")


def test_expected_names_shapes_and_dtypes(weights: Path) -> None:
    expected = {name: (tuple(t.shape), t.dtype) for name, t in small().items()}
    assert same(load_weights(weights, expected), small())
    shape, dtype = expected["a.weight"]
    changes: list[tuple[dict[str, Any], str]] = [
        (expected | {"new": ((1,), torch.float32)}, "missing"),
        ({k: v for k, v in expected.items() if k != "b"}, "unexpected"),
        (expected | {"a.weight": ((3, 2), dtype)}, "[3, 2] torch.float32 is needed"),
        (expected | {"a.weight": (shape, torch.float16)}, "torch.float16 is needed"),
    ]
    for changed, word in changes:
        refuses(partial(load_weights, weights, changed), weights, word)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    refuses(lambda: load_weights(tmp_path / "none", None), tmp_path / "none", "No such file")
    refuses(lambda: load_weights(tmp_path, None), tmp_path, "not a regular file")
    refuses(lambda: read_json(tmp_path / "none"), tmp_path / "none", "No such file")
    refuses(lambda: read_json(tmp_path), tmp_path, "not a regular file")


@POSIX
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    refuses(lambda: load_weights(tmp_path / "pipe", None), tmp_path / "pipe", "not a regular file")


# ---- hostile files ----

BOMBS = """
import json, resource, sys, time
from pathlib import Path
from world_model.checkpoint import load_training, load_weights, read_json
from world_model.types import WorldError

def bound_memory(extra):
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + extra
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))

refused = 0
for path in sorted(Path(sys.argv[1]).iterdir()):
    size = path.stat().st_size if path.stat().st_blocks * 512 >= path.stat().st_size else 0
    load = read_json if path.suffix == ".json" else load_training if path.suffix == ".train" else (
        lambda p: load_weights(p, None))
    bound_memory(size + (64 << 20))
    start = time.process_time()
    try:
        load(path)
    except WorldError:
        refused += 1
    assert time.process_time() - start < 1.0, path
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(refused)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_size_bombs_are_refused_with_little_memory_and_time(tmp_path: Path) -> None:
    tensor = entry("F32", [0], 0, 0)
    many = raw({f"t{i}": tensor for i in range(300_000)})
    assert len(many) > 16 << 20
    bombs = {
        "many": many,
        "many.train": many,
        "more_than_allowed": raw({f"{i}": tensor for i in range(10_000)}),
        "empty_but_huge": raw({"a": entry("F32", [0, 1 << 40], 0, 0)}),
        "huge": raw({"a": entry("F32", [1 << 40], 0, 1 << 42)}),
        "overflow": raw({"a": entry("F32", [0] + [(1 << 31) - 1] * 7, 0, 0)}),
        "claims_99_mb": (99_000_000).to_bytes(8, "little") + b"{}",
        "claims_everything": b"\xff" * 8 + b"{}",
        "deep": raw(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
        "deep.json": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        "lists.json": b'{"a":[' + b"[[" * 100 + b"]]" * 100 + b"]}",
        "long.json": b'{"a":"' + b"x" * (5 << 20) + b'"}',
    }
    for name, data in bombs.items():
        (tmp_path / name).write_bytes(data)
    for name, size, claim in (("h99", 100_000_000, 99_000_000), ("h60", 60_000_000, 59_000_000)):
        with (tmp_path / name).open("wb") as file:  # sparse: takes no disk, and would read as zeros
            file.write(claim.to_bytes(8, "little") + b"{")
            file.truncate(size)
    done = subprocess.run(
        [sys.executable, "-c", BOMBS, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, str(len(bombs) + 2)), done.stderr


class Hostile:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def hostile_files(marker: Path) -> Iterator[bytes]:
    yield from (pickle.dumps({"model": Hostile(marker)}, protocol) for protocol in range(6))
    scratch = marker.with_name("scratch.pt")
    torch.save({"model": Hostile(marker)}, scratch)
    yield scratch.read_bytes()


def test_pickles_under_every_accepted_name_are_refused_and_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "code ran"
    pickle.loads(next(hostile_files(marker)))  # the bait works
    marker.rmdir()
    folder = make_world(tmp_path / "rooms")
    good = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert good.keys() == {WEIGHTS_NAME, WORLD_NAME}
    training = tmp_path / "last.safetensors"
    for data in hostile_files(marker):
        for name in good:
            path = folder / name
            path.write_bytes(data)
            refuses(lambda: load_world_weights(folder, None), path)
            refuses(partial(load_weights, path, None), path)
            refuses(partial(read_json, path), path)
            path.write_bytes(good[name])
        training.write_bytes(data)
        refuses(lambda: load_training(training), training)
    assert not marker.exists()
