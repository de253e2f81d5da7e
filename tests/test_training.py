"""Training stages on a tiny world: they learn, resume exactly and publish what `load_world` opens."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from other_device import other_device
from tiny import IMAGINING, RECALLING, STRIDING, TINY, tiny_data, tiny_world
from world_model import load_world
from world_model.checkpoint import load_training, load_weights, save_training, write_json
from world_model.config import WorldConfig
from world_model.data.dataset import LatentDataset, cached_latents, load_split
from world_model.data.episodes import Episode, list_episodes, read_episode, write_episode
from world_model.model import WorldModel
from world_model.tokenizer import Tokenizer, reconstruction_loss
from world_model.training import decoder_stage, dynamics_stage, tokenizer_stage
from world_model.training import preview as previewing
from world_model.training import publish as publishing
from world_model.training.card import add_scores, sparkline
from world_model.training.decoder_stage import DecoderStage, drawing, pattern_loss, texture_loss
from world_model.training.dynamics_stage import imagining
from world_model.training.loop import StageConfig, Trainer, schedule
from world_model.training.optim import build_optimizer, orthogonalise
from world_model.training.preview import RolloutPreview
from world_model.training.run import (
    CARRY,
    CAST,
    GAUGES,
    IMAGINE,
    ORDER,
    PLACE,
    RECALL,
    STRIDE,
    TrainConfig,
    describe_world,
    load_run,
    train,
    without_memory,
)
from world_model.training.tokenizer_stage import TokenizerPreview, lively_loss
from world_model.types import DataError

MOVING = {*CARRY, *CAST, *GAUGES}
"""What only worlds have in which other things move."""
LACKING = {*RECALL, *IMAGINE, *STRIDE, *MOVING}
"""Stages that the tiny world has nothing for."""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainConfig:
    """A run on pictures of 64 x 32, previews cut short."""
    monkeypatch.setattr(tokenizer_stage, "CROP", (16, 32))
    monkeypatch.setattr(tokenizer_stage, "WHOLE", (32, 64))
    monkeypatch.setattr(previewing, "CONTEXT", 4)
    monkeypatch.setattr(previewing, "TICKS", (1, 8))
    monkeypatch.setattr(publishing, "SCENE_TICKS", 6)
    monkeypatch.setattr(publishing, "REMEMBERED_TICKS", 9)
    small = {k: replace(v, ticks=8, batch_size=2, context=2) for k, v in dynamics_stage.STAGES.items()}
    monkeypatch.setattr(dynamics_stage, "STAGES", small)
    monkeypatch.setattr("world_model.training.run.STAGES", small)
    monkeypatch.setattr("world_model.training.run.MIN_TICKS", 20)
    folder = tmp_path / "run"
    folder.mkdir()
    write_json(folder / "world.json", TINY.to_json())
    return TrainConfig("tiny", tiny_data(tmp_path / "data"), folder, steps=2)


def quiet(_: str) -> None:
    pass


def test_all_stages_run_and_the_result_opens(run: TrainConfig, tmp_path: Path) -> None:
    train(run, quiet)
    stages = set(ORDER) - LACKING
    assert {p.stem for p in run.run.glob("*.safetensors")} == stages
    records = [json.loads(line) for line in (run.run / "metrics.jsonl").read_text().splitlines()]
    assert {r["stage"] for r in records} == stages
    assert len(list(run.run.glob("*-preview-*.png"))) >= len(stages)
    publishing.publish(run.run, run.data, tmp_path / "world", scenes=4)
    card = (tmp_path / "world" / "CARD.md").read_text()
    assert all(f"| {stage} | 2 |" in card for stage in stages)
    add_scores(tmp_path / "world", "| Figure | 1 |", {"figure": 1}, "main.py eval")
    world = load_world(tmp_path / "world")
    assert world.info.scores == {"figure": 1}
    assert "| Figure | 1 |" in (tmp_path / "world" / "CARD.md").read_text()
    assert len(world.info.scenes) == 4
    world.reset(seed=1)
    assert world.step(1).image.shape == (32, 64, 3)


@pytest.mark.parametrize(
    ("config", "foreign"),
    [(IMAGINING, {*PLACE, *MOVING}), (STRIDING, {*RECALL, *IMAGINE, *MOVING})],
    ids=["recall", "stride"],
)
def test_a_world_of_another_kind_is_trained_and_opens(
    run: TrainConfig, tmp_path: Path, config: WorldConfig, foreign: set[str]
) -> None:
    write_json(run.run / "world.json", config.to_json())
    train(run, quiet)
    assert {p.stem for p in run.run.glob("*.safetensors")} == set(ORDER) - foreign
    publishing.publish(run.run, run.data, tmp_path / "world", scenes=4)
    world = load_world(tmp_path / "world")
    world.reset(seed=1)
    assert world.step(1).image.shape == (32, 64, 3)


@pytest.mark.parametrize("stage", ["tokenizer", "trunk", "rollout"])
def test_resume_equals_not_having_stopped(run: TrainConfig, stage: str) -> None:
    from dataclasses import replace

    train(replace(run, stages=("tokenizer",)), quiet)
    whole = replace(run, stages=(stage,), run=run.run.with_name("whole"), steps=6)
    parts = replace(whole, run=run.run.with_name("parts"))
    for config in (whole, parts):
        config.run.mkdir()
        for name in ("world.json", *(() if stage == "tokenizer" else ("tokenizer.safetensors",))):
            (config.run / name).write_bytes((run.run / name).read_bytes())
    train(whole, quiet)
    _train_until(parts, stop_at=3)
    train(parts, quiet)
    a, state_a = load_training(whole.run / f"{stage}.safetensors")
    b, state_b = load_training(parts.run / f"{stage}.safetensors")
    assert state_a["step"] == state_b["step"] == 6
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


def _train_until(config: TrainConfig, stop_at: int) -> None:
    """Stops like a kill between two steps: by an exception after a save."""

    class Killed(Exception):
        pass

    original = Trainer._step

    def step(self, batch):  # type: ignore[no-untyped-def]
        if self.progress.step == stop_at:
            self.save()
            raise Killed
        return original(self, batch)

    Trainer._step = step  # type: ignore[method-assign]
    try:
        with pytest.raises(Killed):
            train(config, quiet)
    finally:
        Trainer._step = original  # type: ignore[method-assign]


def test_a_stage_learns(run: TrainConfig) -> None:
    from world_model.training.tokenizer_stage import TokenizerStage

    episodes = load_split(run.data, "train")
    stage = TokenizerStage(Tokenizer(TINY.tokenizer), episodes, episodes, "cpu", batch_size=8)
    before = stage.preview(run.run / "before.png")["psnr"]
    config = StageConfig(steps=150, lr=3e-3, muon_lr=0.02, preview_seconds=1e9)
    Trainer(stage, config, replace(run, run=run.run / "learn").run).run(quiet)
    assert stage.preview(run.run / "after.png")["psnr"] > before + 3


def test_what_is_lively_counts_by_itself() -> None:
    x, mask = torch.zeros(2, 3, 32, 64), np.zeros((2, 32, 64), bool)
    out = x.clone()
    out[1, :, 4:12, 8:24] = 0.5
    assert lively_loss(out, x, mask) == 0
    mask[1, 20:24, 8:24] = True
    assert lively_loss(out, x, mask) == 0, "the miss lies elsewhere"
    mask[1, 4:12, 8:24] = True
    assert lively_loss(out, x, mask) > 5 * reconstruction_loss(out, x)


def test_dynamics_without_a_tokenizer_say_what_to_do(run: TrainConfig) -> None:
    from dataclasses import replace

    with pytest.raises(DataError, match="train --stage tokenizer first"):
        train(replace(run, stages=("trunk",)), quiet)
    with pytest.raises(ValueError, match="unknown stage"):
        train(replace(run, stages=("polish",)), quiet)


def test_load_run_lays_later_stages_over_earlier_ones(run: TrainConfig) -> None:
    train(run, quiet)
    world = load_run(run.run)
    rollout, _ = load_training(run.run / "rollout.safetensors")
    decoder, _ = load_training(run.run / "decoder.safetensors")
    drawn = drawing(world).state_dict()
    for name, value in drawn.items():
        torch.testing.assert_close(value, decoder[f"average/{name}"])
    for name, value in imagining(world, dynamics_stage.STAGES["rollout"]).state_dict().items():
        torch.testing.assert_close(value, rollout[f"average/{name}"])
    assert not any("average/place." in name for name in rollout), "an old sense of place would come back"


def test_schedule_warms_up_holds_and_anneals() -> None:
    values = [schedule(d, 0.1, 0.4) for d in np.linspace(0, 1, 101)]
    assert values[0] < 0.1 and values[30] == 1.0 and values[100] == 0.0
    assert all(a >= b for a, b in itertools.pairwise(values[60:]))


def test_orthogonalise_flattens_singular_values() -> None:
    matrix = torch.randn(24, 48) @ torch.diag(torch.logspace(0, 2, 48))
    values = torch.linalg.svdvals(orthogonalise(matrix).float())
    assert float(values.min()) > 0.4 and float(values.max()) < 1.4


def test_budget_must_be_one_of_two() -> None:
    class Nothing:
        name, model, device = "nothing", torch.nn.Linear(2, 2), torch.device("cpu")

    with pytest.raises(ValueError, match="--minutes or by --steps"):
        Trainer(Nothing(), StageConfig(), Path("unused"))  # type: ignore[arg-type]


def test_sparkline_falls_with_the_loss() -> None:
    curve = sparkline([float(v) for v in range(100, 0, -1)], width=8)
    assert curve == "█▇▆▅▄▃▂▁"


def test_a_suspended_machine_does_not_use_up_the_budget(tmp_path: Path) -> None:
    trainer = Trainer(Dot(), StageConfig(minutes=1.0), tmp_path)
    for _ in range(20):
        trainer._count(0.5)
    trainer._count(3600.0)
    assert 0.16 < trainer.done < 0.4


def test_a_run_can_begin_with_the_weights_of_another(run: TrainConfig, tmp_path: Path) -> None:
    train(run, quiet)
    again = replace(run, run=tmp_path / "again", stages=("tokenizer", "place"), start=run.run, steps=0)
    again.run.mkdir()
    write_json(again.run / "world.json", TINY.to_json())
    train(again, quiet)
    for stage in again.stages:
        old, _ = load_training(run.run / f"{stage}.safetensors")
        new, _ = load_training(again.run / f"{stage}.safetensors")
        for name, value in old.items():
            if name.startswith("average/"):
                begun = new[name.replace("average/", "model/")]  # one step later, at the rate of a warm-up
                torch.testing.assert_close(begun, value, rtol=0, atol=2e-3)


def test_a_run_can_begin_with_one_that_lacks_what_a_world_has_by_now(
    run: TrainConfig, tmp_path: Path
) -> None:
    run = replace(run, stages=("tokenizer", "place", "trunk"))
    train(run, quiet)
    path = run.run / "trunk.safetensors"
    tensors, state = load_training(path)
    missing = next(k for k in tensors if k.startswith("average/trunk.out"))
    save_training(path, {k: v for k, v in tensors.items() if k != missing}, state)
    again = replace(run, run=tmp_path / "again", start=run.run, steps=0)
    again.run.mkdir()
    write_json(again.run / "world.json", TINY.to_json())
    train(again, quiet)
    key = "trunk.down.weight"
    begun = load_run(again.run).state_dict()[f"dynamics.{key}"]
    torch.testing.assert_close(begun, tensors[f"average/{key}"], rtol=0, atol=4e-3)


def test_a_run_can_begin_with_the_weights_of_a_world(run: TrainConfig, tmp_path: Path) -> None:
    world = tiny_world(tmp_path / "world", seed=3)
    again = replace(run, stages=("tokenizer", "place", "trunk"), start=world, steps=0)
    train(again, quiet)
    there = load_weights(world / "weights.safetensors", None)
    begun = load_run(run.run).state_dict()
    for name in (
        "tokenizer.encoder.layers.1.weight",
        "dynamics.trunk.down.weight",
        "dynamics.trunk.norm.weight",
    ):
        torch.testing.assert_close(begun[name], there[name].float(), rtol=0.02, atol=4e-3)
    # Its place came from there too, so what that says of a view is read as it was.
    stem, old = begun["dynamics.trunk.stem.weight"], there["dynamics.trunk.stem.weight"].float()
    torch.testing.assert_close(stem, old, rtol=0.02, atol=4e-3)


def test_what_another_sense_of_place_said_of_a_view_means_nothing(run: TrainConfig, tmp_path: Path) -> None:
    world = tiny_world(tmp_path / "world", seed=3)
    train(replace(run, stages=("tokenizer", "place"), steps=0), quiet)
    train(replace(run, stages=("trunk",), start=world, steps=0), quiet)
    there = load_weights(world / "weights.safetensors", None)
    stem = load_run(run.run).state_dict()["dynamics.trunk.stem.weight"]
    latent, old = TINY.tokenizer.latent_dim, there["dynamics.trunk.stem.weight"].float()
    torch.testing.assert_close(stem[:, : 2 * latent], old[:, : 2 * latent], rtol=0.02, atol=4e-3)
    assert stem[:, 2 * latent :].abs().max() < 4e-3 < old[:, 2 * latent :].abs().max()


def test_who_has_a_world_and_its_data_trains_it_on(run: TrainConfig, tmp_path: Path) -> None:
    # How many steps its head takes was chosen when it was trained already.
    world = tiny_world(tmp_path / "world", seed=3, config=replace(TINY, head_steps=TINY.head_steps + 1))
    there = load_weights(world / "weights.safetensors", None)
    train(replace(run, stages=("head",), start=world, steps=0), quiet)
    train(replace(run, stages=("decoder",), start=world, steps=0), quiet)
    assert {p.stem for p in run.run.glob("*.safetensors")} == set(ORDER) - LACKING - {"rollout"}
    begun = load_run(run.run).state_dict()
    for name in (
        "tokenizer.encoder.layers.1.weight",
        "dynamics.place.map.surfaces.walls.embed",
        "dynamics.trunk.down.weight",
    ):
        torch.testing.assert_close(begun[name], there[name].float(), rtol=0, atol=0)
    train(replace(run, stages=("trunk",), steps=1), quiet)  # one that came with the world goes on as well


def test_a_world_of_other_latents_lends_nothing_but_the_stage_itself(
    run: TrainConfig, tmp_path: Path
) -> None:
    world = tiny_world(tmp_path / "world", seed=3)
    train(replace(run, stages=("tokenizer",), steps=1), quiet)
    train(replace(run, stages=("trunk",), start=world, steps=0), quiet)
    assert {p.stem for p in run.run.glob("*.safetensors")} == {"tokenizer", "trunk"}


def test_what_a_run_is_to_begin_with_must_be_there(run: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        train(replace(run, start=tmp_path / "none"), quiet)


def test_a_plain_world_remembers_by_its_state_alone(run: TrainConfig) -> None:
    for config in (TINY, RECALLING, IMAGINING):
        dynamics = without_memory(config).dynamics
        assert (dynamics.pose, dynamics.recall, dynamics.window, dynamics.retrieved) == (False, False, 1, 0)
    write_json(run.run / "world.json", without_memory(RECALLING).to_json())
    train(replace(run, stages=("tokenizer", "trunk"), clips=1), quiet)
    assert (run.run / "trunk.safetensors").exists()


def test_ctrl_c_stops_all_stages_and_the_same_command_goes_on(run: TrainConfig) -> None:
    told: list[str] = []

    def interrupt(line: str) -> None:
        told.append(line)
        if line.startswith("tokenizer 1 "):
            os.kill(os.getpid(), signal.SIGINT)

    train(run, interrupt)
    assert told[-1].startswith("stopped")
    assert {p.stem for p in run.run.glob("*.safetensors")} == {"tokenizer"}
    with pytest.raises(DataError, match="train --stage place first"):
        publishing.publish(run.run, run.data, run.run / "world")
    train(run, quiet)
    assert {p.stem for p in run.run.glob("*.safetensors")} == set(ORDER) - {
        *RECALL,
        *IMAGINE,
        *STRIDE,
        *MOVING,
    }


def test_short_episodes_are_left_out(run: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    for i in range(2):
        folder = run.data / "train" / f"ep_99{i}"
        write_episode(folder, _first(read_episode(run.data / "train" / "ep_0000000000"), 12 * i))
    train(replace(run, stages=("tokenizer", "trunk")), told.append)
    assert "2 episodes of train have fewer than 20 ticks: left out" in told
    monkeypatch.setattr("world_model.training.run.MIN_TICKS", 41)
    with pytest.raises(DataError, match="collect longer ones"):
        train(run, quiet)


def test_a_preview_goes_as_far_as_the_longest_episode(
    run: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    episodes = [_first(e, n) for e, n in zip(load_split(run.data, "val"), (3, 20, 22), strict=True)]
    monkeypatch.setattr(previewing, "TICKS", (1, 16, 18))
    scores = RolloutPreview(episodes, count=2)(WorldModel(TINY), run.run / "strip.png")
    assert set(scores) >= {"gain1", "gain16"} and "gain18" not in scores


def _first(episode: Episode, ticks: int) -> Episode:
    """The first ticks of an episode."""
    later = {"frames", "pose", "depth"}
    arrays = {
        name: np.asarray(value)[: ticks + (name in later)]
        for name, value in vars(episode).items()
        if isinstance(value, np.ndarray)
    }
    return replace(episode, **arrays)


def test_a_source_with_a_map_for_every_seed_has_no_map_in_the_weights(run: TrainConfig) -> None:
    pytest.importorskip("vizdoom")
    episode = load_split(run.data, "train")[0]
    episode = replace(episode, frames=np.zeros((len(episode) + 1, 160, 256, 3), np.uint8))  # as the game's
    assert describe_world("rooms", [episode]).dynamics.pose
    mazes = replace(episode, header=episode.header | {"description": "a dim brick maze"})
    dynamics = describe_world("mazes", [mazes]).dynamics
    assert dynamics.recall and not dynamics.pose


def test_the_tokenizer_preview_tells_things_and_bar_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames, labels = np.full((4, 160, 256, 3), 90, np.uint8), np.zeros((4, 1, 5), np.int16)
    labels[1:, 0] = [1, 30, 40, 16, 20]
    other = np.zeros(3, np.uint8)
    header = {"actions": ["idle"], "labels": ["imp"]}
    episode = Episode(header, frames, other, other, None, None, other.astype(np.float32), labels=labels)

    def reconstruct(model: object, frames: np.ndarray, device: object) -> np.ndarray:
        out = frames + np.uint8(2)
        out[:, 40:60, 30:46] += 10
        out[:, 134:] += 4
        return out

    monkeypatch.setattr(tokenizer_stage, "reconstruct", reconstruct)
    preview = TokenizerPreview([episode], torch.device("cpu"), view=134)
    found = preview(Tokenizer(TINY.tokenizer), tmp_path / "sheet.png")
    assert found["things"] == pytest.approx(20 * np.log10(255 / 12), abs=0.01)
    assert found["bar"] == pytest.approx(20 * np.log10(255 / 6), abs=0.01)
    assert found["around"] > found["things"] + 3
    bare = TokenizerPreview([replace(episode, labels=None)], torch.device("cpu"))
    assert not {"things", "around", "bar"} & set(bare(Tokenizer(TINY.tokenizer), tmp_path / "sheet.png"))


def test_without_a_map_the_decoder_learns_from_real_latents(
    run: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder_stage, "AGAIN", 0)
    flat = replace(TINY, dynamics=replace(TINY.dynamics, pose=False))
    world, episodes = WorldModel(flat), load_split(run.data, "train")
    latents = [np.full((len(e.frames), 4, 2, 4), 0.5, np.float16) for e in episodes]
    data = LatentDataset(episodes, latents, (0.0, 0.0), 1.0)
    preview, still = RolloutPreview(episodes, 1), TokenizerPreview(episodes, torch.device("cpu"))
    stage = DecoderStage(world, data, preview, still, "cpu", clip_ticks=8)
    shown: list[torch.Tensor] = []
    world.dynamics.trunk.register_forward_pre_hook(lambda _, inputs: shown.append(inputs[0]))
    for seed in range(6):  # by chance half of the clips would begin elsewhere
        torch.manual_seed(seed)
        stage.loss(stage.batch(np.random.default_rng(seed), 0.0), 0.0)
    assert len(shown) == 12
    assert all(bool((z[:, :4] == 0.5).all()) for z in shown)


def test_data_that_is_collected_again_is_encoded_again(tmp_path: Path) -> None:
    folders = list_episodes(tiny_data(tmp_path / "data"), "train")
    episodes = load_split(tmp_path / "data", "train")
    encoded: list[int] = []

    def encode(frames: np.ndarray) -> np.ndarray:
        encoded.append(len(frames))
        return np.zeros((len(frames), 1), np.float16)

    for _ in range(2):
        cached_latents(episodes, folders, tmp_path / "cache", "key", encode)
    assert len(encoded) == len(episodes)
    for folder, episode in zip(folders, episodes, strict=True):
        frames = np.array(episode.frames)
        shutil.rmtree(folder)
        write_episode(folder, replace(episode, frames=frames))
    cached_latents(episodes, folders, tmp_path / "cache", "key", encode)
    assert len(encoded) == 2 * len(episodes)


def test_entries_of_a_table_learn_at_their_own_rate() -> None:
    model = torch.nn.Module()
    model.plain, model.table = (torch.nn.Parameter(torch.zeros(4)) for _ in range(2))
    model.table.rate = 10.0
    optimizer = build_optimizer(model, lr=1e-3, muon_lr=0.0, weight_decay=0.1)
    (model.plain.sum() + model.table.sum()).backward()
    optimizer.step(1.0)
    torch.testing.assert_close(model.table, 10 * model.plain)


def grain(channels: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    return 0.1 * torch.randn(1, channels, 32, 32, generator=g).expand(1, 3, 32, 32)


def test_checks_are_not_taken_for_grain() -> None:
    ticks = torch.arange(32)
    checks = (0.1 * (1 - 2 * ((ticks[:, None] + ticks) % 2.0))).expand(1, 3, 32, 32)
    smooth = torch.zeros(1, 3, 32, 32)
    assert pattern_loss(checks, smooth) > 3 * pattern_loss(grain(1), smooth)


def test_coloured_grain_does_not_pass_for_grey() -> None:
    other = grain(1).flip(-1)
    coloured = grain(3) * (grain(1).square().sum() / grain(3).square().sum()).sqrt()
    assert texture_loss(other, grain(1)) < 0.5 * texture_loss(coloured, grain(1))


class Dot(torch.nn.Module):
    """The smallest stage."""

    name, device = "dot", torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        self.model = torch.nn.Linear(1, 1)


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(IMAGINING, id="recall"),
        pytest.param(TINY, id="map", marks=pytest.mark.slow),
        pytest.param(STRIDING, id="stride", marks=pytest.mark.slow),
    ],
)
def test_stages_train_on_another_device(
    run: TrainConfig, config: WorldConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_json(run.run / "world.json", config.to_json())
    stages = tuple(s for s in ORDER if s != "feel")  # it dreams, and that device knows no inference tensors
    with other_device(monkeypatch) as device:
        train(replace(run, stages=stages, device=device, steps=1, previews=False), quiet)
    assert set(ORDER) - {*RECALL, *PLACE, *STRIDE, *MOVING} <= {p.stem for p in run.run.glob("*.safetensors")}


def test_what_is_on_different_devices_does_not_mix(monkeypatch: pytest.MonkeyPatch) -> None:
    with other_device(monkeypatch) as device:
        far, near = torch.ones(3, device=device), torch.ones(3)
        assert (2 * far).cpu().tolist() == [2, 2, 2] and far.sum().item() == 3
        with pytest.raises(AssertionError, match="mixes devices"):
            far + near
