"""The report of an evaluation: files, comparison, protocols by name, dreamers by name, the card."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import main
from tiny import tiny_data, tiny_world
from toy_game import Perfect, ToySource, toy_data
from world_model import load_world
from world_model.batch_dream import BatchDream
from world_model.checkpoint import read_json, write_json
from world_model.data import sources
from world_model.evaluation import command, plots, sheets
from world_model.evaluation.baselines import Blurred, CopySeed, MeanFrame, Noise
from world_model.evaluation.choose import choose_dreamer
from world_model.evaluation.compare import ablate, compare, comparison_markdown
from world_model.evaluation.plan import FULL, PROTOCOLS, QUICK, Plan, check_protocols, with_asked
from world_model.evaluation.report import compact_json, data_digest, evaluate
from world_model.evaluation.rollout import rollout
from world_model.evaluation.summary import headline, summary_markdown
from world_model.evaluation.windows import HeldOut, held_out, windows
from world_model.evaluation.worlds import AblatedDream, CheckedDream
from world_model.training.card import EVAL_BYTES, add_evaluation, shown_command
from world_model.types import DataError, SourceError
from world_model.world import batch_dream

TINY = Plan(
    windows=4,
    ticks=32,
    all_windows=2,
    long_windows=2,
    long_ticks=48,
    collapse_rollouts=3,
    collapse_ticks=90,
    starts=4,
    closures=2,
    turns=2,
    walks=2,
    walk_ticks=20,
    realness_clips=0,
    probe_windows=0,
)
FILES = {
    "eval.json",
    "eval.md",
    "report.html",
    "ends.jpg",
    "windows.jpg",
    *(f"strip_{label}.png" for label in ("best", "median", "worst")),
    *(f"film_{label}.gif" for label in ("best", "median", "worst")),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_data(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def data(root: Path) -> HeldOut:
    return held_out(root)


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sources.SOURCES, "toy", ToySource)


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the packages of the extra."""
    for module in (sheets, plots):
        monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)


def no_world(name: str) -> BatchDream:
    raise AssertionError(f"{name} should not be loaded")


def test_evaluate_writes_a_whole_and_repeatable_report(root: Path, tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    pytest.importorskip("matplotlib")
    parts: list[str] = []
    (tmp_path / "film_best.gif").write_bytes(b"of an earlier evaluation")
    result = evaluate(Perfect(), root, True, tmp_path, "toy", TINY, parts.append, machine={"cpu": "Z80"})
    text = (tmp_path / "eval.json").read_text()
    assert json.loads(text) == result and "Z80" not in text
    summary = (tmp_path / "eval.md").read_text()
    assert "| collapsed of 3 rollouts, 90 ticks | 0 | 0 | met |" in summary and "missed" not in summary
    drawn = {f"plot_{name}.png" for name in ("gain", "sharpness", "memory")}
    assert {p.name for p in tmp_path.iterdir()} == FILES | drawn
    assert [p.split()[0] for p in parts] == list(PROTOCOLS) and parts[0].endswith(" s")
    assert compact_json(evaluate(Perfect(), root, True, tmp_path, "toy", TINY)) == text


def test_the_page_holds_everything_and_asks_for_nothing(root: Path, tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    evaluate(Perfect(), root, True, tmp_path, None, TINY, protocols=["rollout"], machine={"cpu": "<Z80>"})
    page = (tmp_path / "report.html").read_text()
    assert "&lt;Z80&gt;" in page and "http" not in page and "<script" not in page
    embedded = re.findall(r"data:image/gif;base64,([^\"]+)", page)
    assert len(embedded) == 3
    assert base64.b64decode(embedded[1]) == (tmp_path / "film_best.gif").read_bytes()


def test_films_run_at_25_frames_a_second_with_real_left(root: Path, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    evaluate(Blurred(Perfect(), 6), root, True, tmp_path, None, TINY, protocols=["rollout"])
    with image.open(tmp_path / "film_worst.gif") as film:
        assert film.n_frames == 33 and film.info["duration"] == 40
        film.seek(20)
        both = np.asarray(film.convert("RGB"), np.float32)
    real, dream = both[:, :32], both[:, -32:]
    assert np.abs(np.diff(real, axis=1)).mean() > 2 * np.abs(np.diff(dream, axis=1)).mean()


@pytest.mark.usefixtures("bare")
def test_without_the_extra_the_figures_are_there_and_the_remedy_is_told(root: Path, tmp_path: Path) -> None:
    said: list[str] = []
    evaluate(Perfect(), root, True, tmp_path, None, TINY, said.append, protocols=["rollout", "collapse"])
    names = {p.name for p in tmp_path.iterdir()}
    assert {"eval.json", "ends.png", "windows.png", "strip_best.png", "report.html"} <= names
    assert not any(n.endswith(".gif") or n.startswith("plot_") for n in names)
    assert 'pip install "reverie[eval]"' in said[-1]
    assert "reverie[eval]" in (tmp_path / "report.html").read_text()


def test_evaluate_reports_a_broken_world_as_missed(root: Path, tmp_path: Path) -> None:
    evaluate(Noise(), root, True, tmp_path, plan=TINY, protocols=["collapse"])
    text = (tmp_path / "eval.md").read_text()
    assert "| collapsed of 3 rollouts, 90 ticks | 3 | 0 | missed |" in text


@pytest.mark.parametrize("name", PROTOCOLS[:5])  # the others train a network
def test_every_protocol_runs_alone(root: Path, tmp_path: Path, name: str) -> None:
    result = evaluate(Perfect(), root, True, tmp_path, "toy", TINY, protocols=[name])
    keys = {"one-tick": "one_tick", "memory": "recall"}
    assert keys.get(name, name) in result
    others = {"one_tick", "rollout", "control", "collapse", "recall"} - {keys.get(name, name)}
    assert not others & set(result)
    assert summary_markdown(result).count("|") > 8


def test_unknown_protocols_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there are one-tick"):
        evaluate(Perfect(), tmp_path / "nowhere", True, tmp_path, protocols=["smell"])
    with pytest.raises(ValueError, match=r"main\.py bench"):
        check_protocols(["speed"])


def test_a_protocol_that_is_asked_for_is_measured_by_a_quick_pass_too() -> None:
    assert QUICK.walks == QUICK.probe_windows == 0
    asked = with_asked(QUICK, ["probe", "memory"])
    assert asked.probe_windows == FULL.probe_windows // 4 and asked.walks == 2
    assert asked.turns == QUICK.turns and asked.realness_clips == QUICK.realness_clips < FULL.realness_clips


def test_a_protocol_that_cannot_be_measured_is_an_error_if_asked_for_and_told_if_not(
    root: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="no training episodes"):
        evaluate(Perfect(), root, True, tmp_path, plan=TINY, protocols=["probe"])
    result = evaluate(Perfect(), root, True, tmp_path, plan=TINY, protocols=["memory"])
    assert "they need the source" in summary_markdown(result) and "closure" in result


def test_a_nan_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="NaN"):
        compact_json({"score": float("nan")})
    text = compact_json({"values": [1, 2, 3], "rows": [["a", 1], ["b [c]", 2]]})
    assert '"values": [1,2,3]' in text and json.loads(text)["rows"][1] == ["b [c]", 2]


def test_a_missing_source_is_told_before_anything_is_measured(root: Path, tmp_path: Path) -> None:
    def missing() -> Any:
        raise SourceError('ViZDoom is not installed; run pip install "reverie[doom]"')

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sources.SOURCES, "toy", missing)
        request = command.Request(str(root), tmp_path / "out", source="toy")
        with pytest.raises(SourceError, match=r"reverie\[doom\]"):
            command.evaluate_one(request, "baseline:copy-seed", no_world, print)
    assert not (tmp_path / "out").exists()


def test_dreamers_are_chosen_by_name(root: Path) -> None:
    assert isinstance(choose_dreamer("baseline:copy-seed", no_world, root), CopySeed)
    assert choose_dreamer("baseline:persistence", no_world, root).name == "persistence"
    assert isinstance(choose_dreamer("baseline:mean-frame", no_world, root), MeanFrame)
    assert choose_dreamer("source:toy", no_world, root).name == "source toy"
    with pytest.raises(ValueError, match="there are copy-seed, persistence"):
        choose_dreamer("baseline:magic", no_world, root)
    with pytest.raises(SourceError, match="unknown source"):
        choose_dreamer("source:chess", no_world, root)


def test_a_world_of_another_game_is_refused(root: Path, tmp_path: Path) -> None:
    folder = tiny_world(tmp_path / "world")
    for name in (str(folder), f"baseline:no-window:{folder}"):
        with pytest.raises(DataError, match="of another game"):
            choose_dreamer(name, batch_dream, root)
    same = choose_dreamer(str(folder), batch_dream, tiny_data(tmp_path / "data", 1, 8))
    assert isinstance(same, CheckedDream) and same.name == "tiny"


def test_held_out_episodes_can_be_played_by_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "RECORDED", {True: 2, False: 3})
    monkeypatch.setattr(command, "RECORDED_TICKS", 60)
    said: list[str] = []
    root, source = command.data_of("toy", tmp_path, True, said.append)
    assert source == "toy" and len(held_out(root).episodes) == 2
    assert command.data_of("toy", tmp_path, True, said.append)[0] == root and len(said) == 1
    with pytest.raises(DataError, match="neither a folder nor a source"):
        command.data_of("nowhere", tmp_path, True, print)
    with pytest.raises(DataError, match="--against"):
        command.data_of(None, tmp_path, True, print)


def test_a_comparison_is_paired_and_names_the_better(data: HeldOut) -> None:
    clips = windows(data, 16, 6, moving=True)
    perfect, copy = rollout(Perfect(), clips), rollout(CopySeed(), clips)
    found = compare({"rollout": perfect}, {"rollout": copy})
    at_16 = found["parts"]["rollout"]["16"]
    assert at_16["better"] == "a" and at_16["low"] > 0 and at_16["a_ahead"] == 1
    assert found["verdict"] == "a" and list(found["figures"]) == ["PSNR, tick 8"]
    assert compare({"rollout": copy}, {"rollout": perfect})["verdict"] == "b"
    same = compare({"rollout": copy}, {"rollout": copy})
    assert same["verdict"] == "undecided" and same["parts"]["rollout"]["16"]["mean"] == 0
    assert "| 16 | +0.00" in comparison_markdown(same, "old", "new")


def test_a_sharper_but_less_exact_world_is_no_clear_winner(data: HeldOut) -> None:
    """Right where the other is right, at another sharpness: each is better in something."""
    clips = windows(data, 32, 6, moving=True)
    blurred, noise = rollout(Blurred(Perfect(), 4), clips), rollout(Perfect(), clips)
    for tick in noise["per_clip"].values():
        tick["psnr"] = [v - 100 for v in tick["psnr"]]
    found = compare({"rollout": blurred}, {"rollout": noise})
    assert found["figures"]["PSNR, tick 32"]["better"] == "a"
    assert found["figures"]["sharpness, tick 32"]["better"] == "b" and found["verdict"] == "undecided"


def test_comparing_what_cannot_be_paired_is_an_error(data: HeldOut) -> None:
    found = [rollout(CopySeed(), windows(data, 8, 4, moving=True, seed=s)) for s in (0, 1)]
    with pytest.raises(DataError, match="different windows"):
        compare({"rollout": found[0]}, {"rollout": found[1]})
    with pytest.raises(DataError, match="share no rollouts"):
        compare({"rollout": found[0]}, {"rollout_long": found[0]})
    with pytest.raises(DataError, match="different versions"):
        compare({"schema": 1, "rollout": found[0]}, {"schema": 2, "rollout": found[0]})
    pairs = [({"sha256": "a"}, {"sha256": "b"}), ({"context": 8}, {"context": 32})]
    for (one, other), says in zip(pairs, ("different data", "different length"), strict=True):
        with pytest.raises(DataError, match=says):
            compare({"data": one, "rollout": found[0]}, {"data": other, "rollout": found[0]})


def test_the_same_windows_of_other_pictures_are_other_data(root: Path) -> None:
    data = held_out(root)
    first = data.episodes[0]
    frames = np.array(first.frames)
    frames[-1] //= 2
    others = [
        replace(first, frames=frames),
        replace(first, actions=first.actions[::-1]),
        replace(first, header=first.header | {"seed": 99}),
    ]
    digests = [data_digest(HeldOut(data.names, (e, *data.episodes[1:]))) for e in others]
    assert data_digest(data) == data_digest(held_out(root)) and len({data_digest(data), *digests}) == 4


def test_an_evaluation_says_of_which_weights_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REVERIE_WORLDS", str(tmp_path / "worlds"))
    world = tiny_world(tmp_path / "worlds" / "tiny")
    wanted = read_json(world / "world.json")["weights_sha256"]
    dream = batch_dream(world, head_steps=3)
    for name in (str(world), "tiny", "baseline:no-window:tiny"):
        assert command.weights_of(dream, name) == wanted
    assert command.weights_of(CopySeed(), "baseline:copy-seed") is None
    assert AblatedDream(dream.engine, "no-window").engine.head_steps == 3


def test_two_dreamers_are_compared_by_one_command(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "QUICK", TINY)
    request = command.Request(str(root), tmp_path, quick=True, protocols=("rollout", "collapse"))
    text = command.compare_two(request, "source:toy", "baseline:copy-seed", no_world, lambda _: None)
    assert "source:toy is better." in text
    found = read_json(tmp_path / "compare.json")
    assert found["verdict"] == "a" and found["figures"]["collapse"]["better"] == "a"
    assert (tmp_path / "compare.md").read_text() == text and (tmp_path / "compare.html").exists()
    files = [str(tmp_path / side / "eval.json") for side in "ab"]
    again = command.Request(None, tmp_path / "again")
    assert "a is better." in command.compare_two(again, *files, no_world, print)


def test_an_ablation_shows_what_a_part_is_worth(data: HeldOut) -> None:
    found = ablate(Perfect(), {"all": CopySeed(), "nothing": Perfect()}, windows(data, 16, 6, moving=True))
    assert found["all"]["16"]["better"] == "a" and found["nothing"]["16"]["mean"] == 0


def test_an_evaluation_lands_beside_its_world(root: Path, tmp_path: Path) -> None:
    result = evaluate(Perfect(), root, True, tmp_path / "eval", "toy", TINY)
    world = tiny_world(tmp_path / "world")
    add_evaluation(world, result, ["eval", "--against", "/home/somebody/data/toy", "--card"])
    assert read_json(world / "eval.json") == result
    scores = read_json(world / "world.json")["scores"]
    assert scores == headline(result) and scores["collapsed"] == 0 and len(scores["gain_32"]) == 3
    assert load_world(world).info.scores == scores  # the new file does not disturb
    card = (world / "CARD.md").read_text()
    assert (
        "`python main.py eval --against data/toy --card`" in card and "| above copy-seed, tick 32 |" in card
    )
    with pytest.raises(DataError, match="fewer windows"):
        add_evaluation(world, result | {"padding": "x" * EVAL_BYTES}, ["eval"])
    assert read_json(world / "eval.json") == result


def test_a_small_pass_does_not_take_the_place_of_a_full_one(root: Path, tmp_path: Path) -> None:
    result = evaluate(Perfect(), root, True, tmp_path / "eval", None, TINY, protocols=["control"])
    world = tiny_world(tmp_path / "world")
    add_evaluation(world, result, ["eval"])
    small = result | {"plan": result["plan"] | {"windows": 1}}
    with pytest.raises(DataError, match="larger pass"):
        add_evaluation(world, small, ["eval"])
    assert read_json(world / "eval.json") == result
    add_evaluation(world, result, ["eval"])  # as large again
    write_json(world / "eval.json", result | {"weights_sha256": "of other weights"})
    add_evaluation(world, small, ["eval"])
    assert read_json(world / "eval.json") == small


def test_the_command_line_measures_a_baseline(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "QUICK", TINY)
    run = partial(CliRunner().invoke, main.app)
    words = ["eval", "--against", str(root), "--world", "baseline:copy-seed", "--out", str(tmp_path)]
    found = run([*words, "--quick", "--protocol", "rollout", "--protocol", "control"])
    assert found.exit_code == 0, found.output
    assert "| above copy-seed, tick 8 | 0.00 dB (0.00 to 0.00) | >= 5 dB | missed |" in found.output
    assert "rollout" in found.output.splitlines()[0]
    assert json.loads((tmp_path / "eval.json").read_text())["dreamer"] == "copy-seed"
    assert run([*words, "--card", "--protocol", "rollout"]).exit_code == 2


def test_a_shown_command_can_be_typed_again() -> None:
    assert shown_command(["eval", "--world", "a b"]) == "python main.py eval --world 'a b'"


def test_a_comparison_of_fights_counts_what_both_can_be_measured_in() -> None:
    clips = [[f"ep_{i}", 0] for i in range(6)]
    fights: list[dict[str, Any]] = [
        {
            "schema": 3,
            "data": {"sha256": "x"},
            "rollout": {"clips": clips, "per_clip": {}},
            "events": {"clips": clips, "per_clip": {"flash_f1": flash, "log_mel": mel}},
        }
        for flash, mel in (([0.9] * 5 + [None], [4.0] * 6), ([0.5] * 6, [9.0] * 6))
    ]
    found = compare(*fights)["figures"]
    assert set(found) == {"flashes of shots", "sound"}
    assert found["flashes of shots"]["mean"] == pytest.approx(0.4) and found["flashes of shots"]["n"] == 5
    assert found["sound"]["better"] == "a", "a smaller distance is better"
