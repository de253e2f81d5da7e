"""The sound of a tick: codec, head, how a dream carries it, how a world holds it, how it is learned."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tiny import ACTIONS, TINY, tiny_data, tiny_frames
from world_model import World, load_world
from world_model.audio import FULL_SCALE, AudioHead, AudioModel, Codec, to_gain, to_level
from world_model.checkpoint import (
    WEIGHTS_NAME,
    load_training,
    load_weights,
    save_training,
    save_weights,
    write_json,
)
from world_model.config import AudioConfig, world_config_from_json
from world_model.data.episodes import Episode, list_episodes, read_episode, write_episode
from world_model.model import WorldModel
from world_model.scenes import Scene, save_scene
from world_model.spectrum import log_mel_distance, snr, spectrogram
from world_model.training.audio_stage import CodecStage, onset_f1
from world_model.training.optim import build_optimizer
from world_model.training.run import TrainConfig, describe_world, load_run, train
from world_model.training.sound_clips import SoundSampler, onsets
from world_model.types import DataError, WorldError
from world_model.world import save_world

SMALL = AudioConfig(latent_dim=8, dim=8, head_dim=16)
SOUNDING = replace(TINY, audio=SMALL)
SHOT = 3


def gunshots(ticks: int, seed: int = 0, every: int = 11) -> np.ndarray:
    """int16 (ticks, 882, 2): bursts of noise over a falling tone, panned, that die away over some ticks."""
    rng = np.random.default_rng(seed)
    line = np.zeros((ticks * 882, 2))
    time = np.arange(5 * 882) / 22050
    burst = np.random.default_rng(7).normal(size=len(time)) * 0.3 + np.sin(
        2 * np.pi * (300 - 900 * time) * time
    )
    shot = burst * np.exp(-25 * time)
    for tick in range(int(rng.integers(0, every)), ticks, every):
        at = tick * 882 + int(rng.integers(0, 300))
        part = shot[: len(line) - at, None]
        line[at : at + len(part)] += part * rng.uniform(0.1, 0.5) * rng.uniform(0.3, 1, 2)
    return (line * 20000).clip(-32768, 32767).astype(np.int16).reshape(ticks, 882, 2)


def gunshot_episode(ticks: int, seed: int) -> Episode:
    header = {"source": "rooms", "licence": "test", "actions": ["idle"], "phases": 5}
    zeros = np.zeros(ticks, np.float32)
    frames = np.zeros((ticks + 1, 2, 2, 3), np.uint8)
    return Episode(
        header, frames, zeros.astype(np.int16), zeros.astype(np.uint8), None, gunshots(ticks, seed), zeros
    )


def sounding_model(seed: int = 0) -> WorldModel:
    """Random weights that are heard."""
    torch.manual_seed(seed)
    model = WorldModel(SOUNDING)
    for parameter in model.parameters():
        if not bool(parameter.detach().any()):
            torch.nn.init.normal_(parameter, std=0.2)
    assert model.dynamics.place is not None and model.audio is not None
    torch.nn.init.constant_(model.dynamics.place.map.surfaces.walls.embed, 0.02)
    with torch.no_grad():
        model.audio.head.sounds.bias.fill_(4.0)
        last = model.audio.head.paint[-1]
        assert isinstance(last, torch.nn.Linear)
        last.bias[0] = 0.8
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("worlds") / "sounding"
    save_world(path, sounding_model(), "test", {"source": "none"}, {})
    for i in range(2):
        save_scene(path, Scene(f"scene{i + 1}", tiny_frames(6, seed=i), np.arange(5) % 4, phase=i))
    return path


@pytest.fixture(scope="module")
def world(folder: Path) -> World:
    return load_world(folder)


def _heard(world: World, actions: list[int], seed: int = 1) -> list[bytes]:
    world.reset(seed=seed)
    return [_bytes(world.step(a).audio) for a in actions]


def _bytes(sound: np.ndarray | None) -> bytes:
    assert sound is not None and sound.dtype == np.int16 and sound.shape == (882, 2)
    return sound.tobytes()


def test_ticks_one_by_one_sound_like_all_at_once() -> None:
    model = AudioModel(SMALL, 3, 4, 2).requires_grad_(False)
    latent = torch.rand(2, 9, SMALL.latent_dim) * 0.8
    latent[:, 4] = 0  # a silent tick, into which the one before still reaches
    frames = model.codec.decode(latent.flatten(0, 1)).unflatten(0, (2, 9))
    whole, tail = model.codec.join(frames, torch.zeros(2, 2, SMALL.overlap))
    state, parts = model.silence(2), []
    for t in range(9):
        state = model.play(state, latent[:, t])
        parts.append(state.samples)
    one_by_one = torch.cat(parts, 1).transpose(1, 2).float() / FULL_SCALE
    assert float((one_by_one - whole).abs().max()) < 1.01 / FULL_SCALE
    assert torch.allclose(state.tail, tail, atol=1e-6)
    silent = parts[4].float()
    assert bool(silent[:, : SMALL.overlap].any()) and not bool(silent[:, SMALL.overlap :].any())


def test_the_seams_of_ticks_do_not_show() -> None:
    codec = Codec(SMALL)
    line = torch.sin(torch.arange(8 * 882) * 0.05)[None, :, None].expand(1, -1, 2) * 12000
    frames = codec.frames(line.unflatten(1, (8, 882)), torch.zeros(1, SMALL.overlap, 2))
    out, _ = codec.join(frames, torch.zeros(1, 2, SMALL.overlap))
    late = line[0, : -SMALL.overlap, 0] / FULL_SCALE
    assert torch.allclose(out[0, 0, SMALL.overlap :], late, atol=1e-5)
    # Ticks of which each has another loudness: steps no larger than the fade makes them.
    loud = torch.tensor([0.2, 1.0] * 4)[None, :, None, None].expand(1, 8, 2, SMALL.frame)
    steps, _ = codec.join(loud, torch.full((1, 2, SMALL.overlap), 0.0))
    assert float(steps[..., SMALL.overlap :].diff(dim=-1).abs().max()) < 0.8 * 2 / SMALL.overlap


def test_the_codec_is_causal() -> None:
    codec = Codec(SMALL)
    sound = torch.from_numpy(gunshots(6).astype(np.float32))[None]
    other = sound.clone()
    other[:, 4:] = 1000.0
    a, b = (codec.frames(s, torch.zeros(1, SMALL.overlap, 2)) for s in (sound, other))
    assert torch.equal(a[:, :4], b[:, :4]) and not torch.equal(a[:, 4:], b[:, 4:])


def test_silence_is_exact_and_loudness_keeps() -> None:
    codec = Codec(SMALL).requires_grad_(False)
    latent = codec.encode(torch.zeros(3, 2, SMALL.frame))
    assert not bool(latent.any()) and not bool(codec.decode(latent).any())
    rms = torch.tensor([1.0, 0.5, 0.01, 0.0003])
    assert torch.allclose(to_gain(to_level(rms)), rms, rtol=1e-4)
    frame = torch.randn(1, 2, SMALL.frame) * 0.1
    near, far = codec.encode(frame), codec.encode(frame / 50)
    assert torch.allclose(near[:, 1:], far[:, 1:], atol=1e-4) and bool(near[0, 0] > far[0, 0] + 0.4)


def test_the_codec_learns_gunshots(tmp_path: Path) -> None:
    torch.manual_seed(0)
    train_set, val_set = [gunshot_episode(120, s) for s in (0, 1)], [gunshot_episode(60, 9)]
    stage = CodecStage(Codec(replace(SMALL, latent_dim=32, dim=24)), train_set, val_set, "cpu", batch_size=6)
    before = stage.preview(tmp_path / "before.png")
    optimizer = build_optimizer(stage.model, 2e-3, 0.02, 0.0)
    for step in range(90):
        loss, _ = stage.loss(stage.batch(np.random.default_rng(step), 0.0), 0.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(min(1.0, (90 - step) / 40))
    after = stage.preview(tmp_path / "after.png")
    assert after["snr"] > before["snr"] + 3 and after["snr"] > 2.5
    assert after["log_mel"] < 0.6 * after["silence"]
    assert (tmp_path / "after.png").stat().st_size > 1000


def test_the_head_bangs_when_it_shoots() -> None:
    """The latent of a shot follows from the action, that of its end from the latent before."""
    torch.manual_seed(0)
    head = AudioHead(replace(SMALL, head_dim=48), 3, 4, len(ACTIONS))
    loud, fading = torch.full((8,), 0.9), torch.cat((torch.tensor([0.5]), torch.full((7,), -0.6)))
    optimizer = torch.optim.Adam(head.parameters(), 5e-3)
    seen = torch.zeros(1, 3, 2, 4), torch.zeros(1, 4, 2, 4)
    for _ in range(200):
        act = torch.randint(0, 4, (32,))
        after_shot = torch.rand(32) < 0.5
        before = torch.where(after_shot[:, None], loud, torch.zeros(8))
        sounds = (act == SHOT) | after_shot
        target = torch.where((act == SHOT)[:, None], loud, fading)
        feeling = head.feel(head.look(*seen).expand(32, -1), act, before)
        tau = torch.rand(32) * (torch.rand(32) > 0.4)
        noised = tau[:, None] * target + (1 - tau[:, None]) * torch.randn(32, 8)
        miss = ((head.clean(noised, tau, feeling.condition) - target) ** 2).mean(1) * sounds
        bce = torch.nn.functional.binary_cross_entropy_with_logits
        loss = miss.mean() + bce(feeling.logit, sounds.float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    actions = [0, 0, SHOT, 0, 0, 1]
    said: list[Tensor] = [torch.zeros(1, 8)]
    for a in actions:
        feeling = head.feel(head.look(*seen), torch.tensor([a]), said[-1])
        said.append(head.sample(feeling, torch.randn(1, 8), torch.rand(1)).detach())
    levels = [float(latent[0, 0]) for latent in said[1:]]
    assert levels[:2] == [0, 0] and levels[2] > 0.7 and 0.3 < levels[3] < 0.7
    assert [bool(x) for x in onsets(np.array(levels, np.float32))][:4] == [False, False, True, False]


def test_what_is_not_finite_is_silence() -> None:
    head = AudioHead(SMALL, 3, 4, 2)
    feeling = head.feel(torch.zeros(2, 16), torch.tensor([0, 1]), torch.zeros(2, 8))
    feeling = feeling._replace(logit=torch.full((2,), 9.0))
    noise = torch.stack((torch.full((8,), float("nan")), torch.zeros(8)))
    assert not bool(head.sample(feeling, noise, torch.rand(2))[0].any())


def test_a_world_with_sound_is_heard_and_repeats_itself(world: World) -> None:
    assert world.info.sound_rate == 22050
    first = world.reset(seed=1)
    assert not any(_bytes(first.audio))  # what sounded before is not known
    heard = _heard(world, [1, 2, 3, 0])
    assert all(any(tick) for tick in heard) and len(set(heard)) == 4
    assert _heard(world, [1, 2, 3, 0]) == heard
    assert _heard(world, [1, 2, 3, 0], seed=3)[0] != heard[0]  # the same scene, another chance


def test_snapshots_bring_the_sound_back(world: World) -> None:
    _heard(world, [1, 2])
    state = world.snapshot()
    present = _bytes(world.paint(state).audio)
    on = [_bytes(world.step(a).audio) for a in (3, 0, 1)]
    world.restore(state)
    assert [_bytes(world.step(a, paint=False).audio) for a in (3, 0, 1)] == on
    slept = world.unpack_state(world.pack_state(state))
    assert slept.hash() == state.hash()
    world.restore(slept)
    assert _bytes(world.paint().audio) == present
    assert [_bytes(world.step(a).audio) for a in (3, 0, 1)] == on
    assert state.dream.sound is not None
    hushed = replace(state.dream, sound=state.dream.sound._replace(tail=state.dream.sound.tail + 1))
    assert replace(state, dream=hushed).hash() != state.hash()


def test_a_world_without_sound_is_written_as_before(tmp_path: Path) -> None:
    assert "audio" not in TINY.to_json() and world_config_from_json(TINY.to_json()) == TINY
    assert world_config_from_json(json.loads(json.dumps(SOUNDING.to_json()))) == SOUNDING
    assert not [k for k in WorldModel(TINY).state_dict() if k.startswith("audio")]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"rate": 22051}, "does not fit"),
        ({"overlap": 100}, "does not fit"),
        ({"dim": "many"}, "'dim'"),
        ({"dim": -1}, "'dim'"),
        ({"colour": 1}, "colour"),
    ],
)
def test_a_bad_description_of_sound_is_told(change: dict[str, object], told: str) -> None:
    data = SOUNDING.to_json()
    data["audio"] |= change
    with pytest.raises(WorldError, match=told):
        world_config_from_json(data)


@pytest.mark.parametrize("damage", ["absent", "shape", "nan"])
def test_a_world_whose_audio_part_is_broken_is_refused(folder: Path, tmp_path: Path, damage: str) -> None:
    broken = tmp_path / "world"
    shutil.copytree(folder, broken)
    path = broken / WEIGHTS_NAME
    tensors = load_weights(path, None)
    name = "audio.head.sounds.weight"
    if damage == "absent":
        tensors = {k: v for k, v in tensors.items() if not k.startswith("audio.")}
    elif damage == "shape":
        tensors[name] = tensors[name][:, :-1].contiguous()
    if damage == "nan":
        data = bytearray(path.read_bytes())
        data[-2000:-1000] = b"\xff" * 1000
        path.write_bytes(bytes(data))
    else:
        description = json.loads((broken / "world.json").read_text())
        write_json(broken / "world.json", description | {"weights_sha256": save_weights(path, tensors)})
    with pytest.raises(WorldError, match=WEIGHTS_NAME):
        load_world(broken)


def test_the_stages_teach_a_world_to_sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from world_model.training import run as running

    data = tiny_data(tmp_path / "data", episodes=2, ticks=60)
    for split in ("train", "val"):
        for path in list_episodes(data, split):
            episode = read_episode(path)
            write_episode(path.with_name("ep_new"), replace(episode, sound=gunshots(len(episode))))
            shutil.rmtree(path)
            path.with_name("ep_new").rename(path)
    run = tmp_path / "run"
    run.mkdir()
    write_json(run / "world.json", SOUNDING.to_json())
    model = WorldModel(SOUNDING)
    save = {f"average/{k}": v for k, v in model.tokenizer.state_dict().items()}
    save_training(run / "tokenizer.safetensors", save, {"step": 0, "seconds": 0.0})
    config = TrainConfig("tiny", data, run, ("codec", "audio"), steps=2)
    train(config, lambda line: None)
    assert {p.stem for p in run.glob("*.safetensors")} == {"tokenizer", "codec", "audio"}
    loaded = load_run(run)
    assert loaded.audio is not None
    for name, part in (("codec", loaded.audio.codec), ("audio", loaded.audio.head)):
        kept, _ = load_training(run / f"{name}.safetensors")
        assert all(torch.equal(kept[f"average/{k}"], v) for k, v in part.state_dict().items())
    monkeypatch.setattr(running, "make_source", lambda name, sound: _Source())
    described = describe_world("tiny", [read_episode(p) for p in list_episodes(data, "train")])
    assert described.audio == AudioConfig()
    write_json(run / "world.json", TINY.to_json())
    with pytest.raises(DataError, match="without sound"):
        train(config, lambda line: None)


class _Source:
    actions = ACTIONS

    def close(self) -> None:
        pass


def test_clips_are_cut_around_what_happens() -> None:
    sampler = SoundSampler([gunshot_episode(100, 0)], AudioConfig())
    rng = np.random.default_rng(0)
    batch = sampler.cut(sampler.places(rng, 64, 4), 4)
    assert float(batch.onset.any(1).float().mean()) > 0.6  # by chance it would be about a third
    start = sampler.cut([(0, 1)], 2)
    whole = gunshots(100, 0)
    assert np.array_equal(start.before[0].numpy(), whole[0, -126:]) and start.sound.shape == (1, 2, 882, 2)
    with pytest.raises(DataError, match="no sound"):
        SoundSampler([replace(gunshot_episode(20, 0), sound=None)], AudioConfig())
    with pytest.raises(DataError, match="200 ticks"):
        sampler.places(rng, 1, 200)
    with pytest.raises(DataError, match="sound of"):
        SoundSampler([gunshot_episode(20, 0)], AudioConfig(rate=48000, overlap=96))


def test_measures_mean_what_they_say() -> None:
    real = np.zeros((1, 20), bool)
    real[0, [3, 12]] = True
    assert onset_f1(real, real) == 1 and onset_f1(np.roll(real, 1, 1), real) == 1
    assert onset_f1(np.roll(real, 2, 1), real) == 0 and onset_f1(real & False, real & False) == 1
    tone = torch.sin(torch.arange(22050) * 0.3)[None] * 0.3
    assert snr(tone, tone) > 60 and abs(snr(tone * 0, tone)) < 1e-4
    assert log_mel_distance(tone, tone, 22050) == 0
    assert log_mel_distance(tone * 0.5, tone, 22050) < log_mel_distance(tone * 0, tone, 22050)
    image = spectrogram(tone[0], 22050)
    loud = int(image.sum((1, 2)).argmax())  # 1053 Hz lies below the middle of the picture
    assert image.shape[0] == 120 and image.dtype == np.uint8 and 60 < loud < 95
