"""What is saved comes back; world folders are checked; a full disk or a kill never leaves half a file."""

from __future__ import annotations

import errno
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from checkpoint_cases import make_world, refuses, same, small
from world_model import files
from world_model.checkpoint import (
    HASH_KEY,
    SCHEMA,
    WEIGHTS_NAME,
    WORLD_NAME,
    load_training,
    load_weights,
    load_world_weights,
    read_json,
    read_world_json,
    save_training,
    save_weights,
    write_json,
)
from world_model.types import DataError, WorldError

ROOT = Path(__file__).resolve().parents[1]
POSIX = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and kill")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / WEIGHTS_NAME
    save_weights(path, small())
    return path


# ---- what is saved comes back ----


def test_every_dtype_and_odd_shape_comes_back(tmp_path: Path) -> None:
    dtypes = (torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8)
    tensors = {f"t{i}": torch.arange(5).to(dtype) for i, dtype in enumerate(dtypes)}
    tensors |= {
        "scalar": torch.tensor(3.0),
        "empty": torch.zeros(0, 4),
        "transposed": torch.arange(6.0).reshape(2, 3).T,
        "ünïcode": torch.ones(1),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    sha = save_weights(tmp_path / "w", tensors, {"note": "x"})
    assert same(load_weights(tmp_path / "w", None), {k: v.detach() for k, v in tensors.items()})
    assert save_weights(tmp_path / "again", dict(reversed(tensors.items())), {"note": "x"}) == sha
    assert (tmp_path / "w").read_bytes() == (tmp_path / "again").read_bytes()


def test_other_readers_of_safetensors_can_open_it(weights: Path) -> None:
    assert same(safetensors.torch.load_file(weights), small())


def test_the_file_carries_the_hash_that_is_returned(tmp_path: Path) -> None:
    sha = save_weights(tmp_path / "w", small())
    with safetensors.safe_open(tmp_path / "w", "pt") as file:
        assert file.metadata()[HASH_KEY] == sha


def test_training_state_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "step.safetensors"
    state = {"step": 3, "best": math.inf, "lr": 1e-3, "history": [{"loss": 0.5}]}
    tensors = {"model.w": torch.ones(2), "rng": torch.get_rng_state(), "bad": torch.tensor([math.nan])}
    save_training(path, tensors, state)
    loaded, again = load_training(path)
    assert again == state
    assert torch.equal(loaded["rng"], tensors["rng"]) and loaded["bad"].isnan().all()


def test_weights_are_not_a_training_checkpoint(weights: Path) -> None:
    refuses(lambda: load_training(weights), weights, "not a training checkpoint")


def test_saving_refuses_what_could_not_be_read_back(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="float64"):
        save_weights(tmp_path / "w", {"a": torch.zeros(1, dtype=torch.float64)})
    with pytest.raises(WorldError, match="NaN"):
        save_weights(tmp_path / "w", {"a": torch.tensor([math.nan])})
    with pytest.raises(ValueError, match="5000 tensors"):
        save_weights(tmp_path / "w", {str(i): torch.zeros(1) for i in range(5000)})
    with pytest.raises(ValueError, match="metadata"):
        save_weights(tmp_path / "w", small(), {"note": "x" * (2 << 20)})
    assert not list(tmp_path.iterdir())


# ---- world folders ----


def test_a_world_folder_loads(tmp_path: Path) -> None:
    folder = make_world(tmp_path)
    assert read_world_json(folder)["name"] == "rooms"
    assert same(load_world_weights(folder, None), small())


def test_weights_of_another_world_are_refused(tmp_path: Path) -> None:
    folder = make_world(tmp_path)
    save_weights(folder / WEIGHTS_NAME, small() | {"c": torch.tensor([8])})
    refuses(lambda: load_world_weights(folder, None), folder / WEIGHTS_NAME, "weights_sha256")


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"schema": SCHEMA + 1}, "Upgrade reverie"),
        ({"schema": 0}, "never existed"),
        ({"schema": -3}, "never existed"),
        ({"schema": True}, "'schema'"),
        ({"schema": "1"}, "'schema'"),
        ({"schema": ...}, "'schema'"),
        ({"config": ...}, "'config' is missing"),
        ({"actions": {}}, "'actions' must be of type list"),
        ({"licence": None}, "'licence' must be of type str"),
        ({"weights_sha256": "F" * 64}, "'weights_sha256'"),
    ],
)
def test_world_json_is_checked(tmp_path: Path, changes: dict[str, Any], word: str) -> None:
    folder = make_world(tmp_path, **changes)
    refuses(lambda: read_world_json(folder), folder / WORLD_NAME, word)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "1", '{"a": Infinity}', '{"a": 1}x', "\0", '{"a": 1, "a": 2}']
)
def test_broken_json_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    refuses(lambda: read_json(path), path)


def test_json_comes_back(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": [1, 2.5, None, "ä"]})
    assert read_json(tmp_path / "x.json") == {"a": [1, 2.5, None, "ä"]}
    with pytest.raises(ValueError, match="Out of range"):
        write_json(tmp_path / "x.json", {"a": math.nan})
    assert read_json(tmp_path / "x.json") == {"a": [1, 2.5, None, "ä"]}


# ---- disks and kills ----


class FailingFile:
    """A file whose k-th write finds the disk full, after half of it went through."""

    def __init__(self, path: Path, mode: str, fail_at: int) -> None:
        self.file = open(path, mode)  # noqa: SIM115 - closed in __exit__
        self.left = fail_at

    def write(self, data: bytes | memoryview) -> int:
        if self.left == 0:
            self.file.write(data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.left -= 1
        return self.file.write(data)

    def __enter__(self) -> FailingFile:
        return self

    def __exit__(self, *args: object) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def check_failed_save(path: Path, before: bytes, word: str) -> None:
    changed = {name: t + 1 for name, t in small().items()}
    with pytest.raises(DataError) as caught:
        save_weights(path, changed)
    assert str(path) in str(caught.value) and word in str(caught.value)
    assert "Free some disk space" in str(caught.value)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_full_disk_at_any_write_leaves_the_old_file(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, writes = weights.read_bytes(), 2 + len(small())
    for k in range(writes):
        opener = lambda path, mode, k=k: FailingFile(path, mode, k)  # noqa: E731
        monkeypatch.setattr(files, "open", opener, raising=False)
        check_failed_save(weights, before, "No space left")
    monkeypatch.setattr(files, "open", lambda path, mode: FailingFile(path, mode, writes), raising=False)
    save_weights(weights, small())  # k counted every write


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_read_only_or_failing_disk_leaves_the_old_file(
    weights: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fail(*args: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    before = weights.read_bytes()
    monkeypatch.setattr(files.os, call, fail)
    check_failed_save(weights, before, "Read-only file system")


def test_a_folder_that_cannot_be_made_is_one_clear_error(weights: Path) -> None:
    with pytest.raises(DataError, match="could not be saved"):
        save_weights(weights / "below a file" / "w", small())


def test_leftovers_of_killed_saves_go_but_not_those_in_progress(weights: Path) -> None:
    old, fresh = (weights.with_name(f".{weights.name}.{x}.tmp") for x in ("old", "fresh"))
    for path in (old, fresh):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    save_weights(weights, small())
    assert not old.exists() and fresh.exists()


KILLS = """
import os, random, signal, sys, time
import torch
from world_model.checkpoint import load_weights, save_weights

torch.set_num_threads(1)
path, kills = sys.argv[1], int(sys.argv[2])
generator, last, cut = random.Random(0), 0, 0
save_weights(path, {"a": torch.zeros(65536), "b": torch.zeros(3)})
done = 0
while done < kills or (not cut and done < 20 * kills):  # by chance none of few hits a save
    done += 1
    child = os.fork()
    if child == 0:
        n = last
        while True:
            n += 1
            save_weights(path, {"a": torch.full((65536,), float(n)), "b": torch.full((3,), float(n))})
    before = os.stat(path).st_mtime_ns
    while os.stat(path).st_mtime_ns == before:
        time.sleep(0.001)
    time.sleep(generator.random() * 0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    tensors = load_weights(path, None)
    values = set(tensors["a"].tolist()) | set(tensors["b"].tolist())
    assert len(values) == 1, values
    now = values.pop()
    assert now > last, (now, last)
    last = int(now)
    cut += sum(name.endswith(".tmp") for name in os.listdir(os.path.dirname(path))) > cut
print(done, cut)
"""


@POSIX
@pytest.mark.parametrize("kills", [10, pytest.param(200, marks=pytest.mark.slow)])
def test_a_kill_while_saving_leaves_the_old_file_or_the_new(tmp_path: Path, kills: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLS, str(tmp_path / "w"), str(kills)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) >= kills
    assert int(done.stdout.split()[1]) > 0, "no kill hit a save in progress"
