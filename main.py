"""The command line of Reverie. Wiring only: every command imports what it needs, so help is instant."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from world_model.types import ReverieError

EPILOGUE = (
    "Exit codes: 0 all is well, 1 any other error, 2 wrong usage, 3 a world that is missing or damaged, "
    "4 a real game that is not installed, 5 no window, 6 files that cannot be read or written."
)
KEPT = (
    "What is kept (recordings, films, clips, screenshots, slots, keys.toml) lies in $REVERIE_HOME; without "
    "it in ~/.local/share/reverie on Linux, ~/Library/Application Support/reverie on macOS, "
    "%LOCALAPPDATA%/reverie on Windows."
)
app = typer.Typer(
    help="A neural world you can play: real time, on a CPU, offline. Without a command it plays.",
    epilog=EPILOGUE,
    invoke_without_command=True,
    no_args_is_help=False,
    add_completion=False,
    pretty_exceptions_enable=False,
)

World = Annotated[str, typer.Option(help="A world's name, or the path of a world folder.")]
Seed = Annotated[int, typer.Option(min=0, help="Chooses the start, and all chance.")]
Scene = Annotated[str | None, typer.Option(help="A named start instead of one chosen by the seed.")]


@app.callback()
def default(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        play()


@app.command(epilog=f"{KEPT} {EPILOGUE}")
def play(
    world: Annotated[str | None, typer.Option(help="A world's name or folder; without it, a choice.")] = None,
    seed: Seed = 0,
    scene: Scene = None,
    source: Annotated[
        str | None,
        typer.Option(help="Play this real game instead of a dream: rooms, car_racing, gym:ENV_ID."),
    ] = None,
    twin: Annotated[bool, typer.Option("--twin", help="The real game beside the dream.")] = False,
    player: Annotated[
        str, typer.Option(help="human, random, wander, the path of a script, or a recording's folder.")
    ] = "human",
    fast: Annotated[bool, typer.Option("--fast", help="Do not pace at 25 ticks a second.")] = False,
    fullscreen: Annotated[bool, typer.Option("--fullscreen", help="Fill the screen.")] = False,
    no_audio: Annotated[bool, typer.Option("--no-audio", help="Use no sound device.")] = False,
    log: Annotated[bool, typer.Option(help="Keep the log that replays the session.")] = True,
    ticks: Annotated[int | None, typer.Option(min=1, help="Leave by itself after so many ticks.")] = None,
    film: Annotated[bool, typer.Option("--film", help="Film from the start (extra: video).")] = False,
    record: Annotated[
        Path | None,
        typer.Option(help="Film from the start, and keep film and log in this folder (extra: video)."),
    ] = None,
    trace: Annotated[Path | None, typer.Option(help="Write a Chrome trace of every tick there.")] = None,
    keys: Annotated[Path | None, typer.Option(help="Key bindings, a TOML file.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="With --source: the data set that gains the episode (else the player's own folder)."
        ),
    ] = None,
) -> None:
    """Opens a window and plays. Arrows or WASD move, H shows all keys, Esc leaves."""
    from game.play import Options
    from game.play import play as run
    from world_model.paths import list_worlds

    if out is not None and source is None:
        raise typer.BadParameter("--out goes with --source; a dream is recorded by `record`")
    if source is not None and (twin or world is not None or scene is not None):
        raise typer.BadParameter(
            "--source plays the real game alone, without --world, --twin or --scene; "
            "the dream and its game are --world NAME --twin"
        )
    options = Options(
        world,
        seed,
        scene,
        source,
        twin,
        player,
        fast,
        fullscreen,
        log,
        ticks,
        film,
        trace,
        keys,
        out=out,
        audio=not no_audio,
        record=record,
    )
    summary = run(options, _load_world, list_worlds)
    if summary is not None:
        typer.echo("\n".join(summary.lines()))
        if summary.interrupted:
            raise typer.Exit(130)


@app.command()
def worlds() -> None:
    """Lists the worlds that are installed."""
    from world_model.paths import list_worlds

    found = list_worlds()
    for name, folder in found.items():
        typer.echo(f"{name:<16}{folder}")
    if not found:
        typer.echo("no world is installed", err=True)


@app.command(epilog=EPILOGUE)
def record(
    out: Annotated[Path, typer.Option(help="A new folder for the episode.")],
    frames: Annotated[int, typer.Option(min=1, help="Frames to imagine.")] = 250,
    world: World = "rooms",
    policy: Annotated[str, typer.Option(help="random, wander, or the path of a script.")] = "wander",
    seed: Seed = 0,
    scene: Scene = None,
) -> None:
    """Writes a rollout without a window: frames, actions and a log that replays.

    A script is a text of one action name per line with an optional count ("forward 20").
    """
    from game.players import player_for
    from game.recorder import open_frames, record_rollout, stopped_rollout

    loaded = _load_world(world)
    player = player_for(policy, loaded.actions, seed)
    try:
        record_rollout(loaded, player, frames, out, seed, scene)
    except KeyboardInterrupt:
        typer.echo(stopped_rollout(out) or "stopped", err=True)
        raise typer.Exit(130) from None
    written = len(open_frames(out / "frames.npy")) - 1
    typer.echo(f"{written} frames written to {out}" + (", then it was over" if written < frames else ""))


@app.command(epilog=EPILOGUE)
def replay(
    recording: Annotated[Path, typer.Argument(help="The folder of a recording.")],
    world: Annotated[str | None, typer.Option(help="Another world than the recorded one.")] = None,
    video: Annotated[Path | None, typer.Option(help="Write it as .mp4 or .gif (extra: video).")] = None,
    size: Annotated[str, typer.Option(help="Size of the video.")] = "1280x800",
) -> None:
    """Dreams a recording again and checks every picture and state against it."""
    from game.replay import read_recording, render, report
    from game.twin import open_recorded

    width, found, height = size.partition("x")
    if not (found and width.isdigit() and height.isdigit() and min(int(width), int(height)) >= 16):
        raise typer.BadParameter(f"{size!r} is not a size like 1280x800")
    kept = read_recording(recording)
    loaded = open_recorded(kept.header, _load_world, world)
    if video is not None:
        typer.echo(render(kept, loaded, video, (int(width), int(height))))
    else:
        typer.echo(report(kept, loaded))


@app.command(epilog=EPILOGUE)
def export(
    folder: Annotated[Path, typer.Argument(help="A recording, a rollout, an episode, or a folder of these.")],
    to: Annotated[str, typer.Option(help="npz, lerobot (extra: lerobot) or minari (extra: minari).")],
    out: Annotated[Path | None, typer.Option(help="A new folder; without it DIR-npz and so on.")] = None,
    world: Annotated[str | None, typer.Option(help="Another world than the recorded one.")] = None,
) -> None:
    """Writes rollouts for training elsewhere. A recording is dreamed again and verified on the way."""
    from game.export import export as write

    typer.echo(write(folder, to, out, _load_world, world))


@app.command()
def bench(
    world: World = "rooms",
    ticks: Annotated[int, typer.Option(min=1, help="Ticks that are measured.")] = 500,
    warmup: Annotated[int, typer.Option(min=0, help="Ticks before, that are not.")] = 50,
    paced: Annotated[bool, typer.Option("--paced", help="At 25 ticks a second, as in play.")] = False,
    compare: Annotated[Path | None, typer.Option(help="The output of an earlier run.")] = None,
) -> None:
    """Milliseconds a tick by section, without a window. The last line is one JSON document."""
    import json

    from game import bench as benchmark

    other = benchmark.read_result(compare, paced) if compare else None
    result = benchmark.bench(lambda: _load_world(world), ticks, warmup, paced)
    typer.echo(benchmark.table(result, other))
    typer.echo(json.dumps(result))


@app.command(epilog=EPILOGUE)
def collect(
    out: Annotated[Path, typer.Option(help="The folder of the data set; an unfinished one goes on.")],
    source: Annotated[
        str, typer.Option(help="rooms, arena, mazes, mazes_small, car_racing or gym:ENV_ID.")
    ] = "rooms",
    frames: Annotated[int, typer.Option(min=1, help="Training frames; held-out ones come on top.")] = 200_000,
    seed: Annotated[int, typer.Option(min=0, help="First episode's seed.")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Processes that play at once.")] = 2,
    sound: Annotated[bool, typer.Option(help="Sound, where the game has it; needs OpenAL.")] = True,
) -> None:
    """Records a real game, played by walkers that look where they go."""
    from tqdm import tqdm

    from world_model.data.collect import CollectConfig
    from world_model.data.collect import collect as run

    with tqdm(total=frames, unit="frame") as bar:
        report = run(CollectConfig(source, frames, out, seed, workers=workers, sound=sound), bar.update)
    for name, value in report.items():
        typer.echo(f"{name:<16}{value}")


@app.command(epilog=EPILOGUE)
def train(
    data: Annotated[Path, typer.Option(help="The folder that collect wrote.")],
    run: Annotated[Path, typer.Option(help="The folder of the run; an unfinished one goes on.")],
    world: Annotated[str, typer.Option(help="The name of the new world.")] = "rooms",
    stage: Annotated[
        str,
        typer.Option(
            help="tokenizer, place, recall, stride, survey, align, trunk, head, rollout, decoder, "
            "light, grain, imagine, feel; all."
        ),
    ] = "all",
    minutes: Annotated[float | None, typer.Option(help="Ends, annealed, after so long.")] = None,
    steps: Annotated[int | None, typer.Option(help="Or after so many steps a stage.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    compiled: Annotated[bool, typer.Option("--compile", help="torch.compile; needs a C++ compiler.")] = False,
    episodes: Annotated[int | None, typer.Option(help="Use at most so many episodes.")] = None,
    like: Annotated[
        Path | None,
        typer.Option("--from", help="A run or a world's folder whose fitting weights a stage begins with."),
    ] = None,
    clips: Annotated[
        int | None,
        typer.Option(min=1, help="Clips to a batch of trunk, head, rollout, decoder."),
    ] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="No memory but Mamba's state, to measure others against.")
    ] = False,
    previews: Annotated[
        bool, typer.Option(help="Pictures and scores on the way, minutes each where a processor is slow.")
    ] = True,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Trains a world. Ctrl-C saves; the same command goes on where it stopped."""
    from world_model.training.run import ORDER, TrainConfig
    from world_model.training.run import train as start

    stages = ORDER if stage == "all" else (stage,)
    if minutes is None and steps is None:
        minutes = 300.0 if stage == "all" else 60.0
    config = TrainConfig(
        world,
        data,
        run,
        stages,
        minutes,
        steps,
        device,
        seed,
        episodes,
        compiled,
        like,
        previews=previews,
        clips=clips,
        plain=plain,
    )
    start(config, typer.echo)


@app.command(epilog=EPILOGUE)
def publish(
    run: Annotated[Path, typer.Option(help="The folder of a finished run.")],
    data: Annotated[Path, typer.Option(help="The data set it learned from; scenes are its held-out part.")],
    out: Annotated[Path, typer.Option(help="The world folder to write.")],
) -> None:
    """Turns a run into a world folder: weights, description, scenes, card."""
    from world_model.training.publish import publish as write

    write(run, data, out)
    typer.echo(f"{out} can be played: main.py play --world {out}")


@app.command(name="eval", epilog=EPILOGUE)
def evaluate(
    against: Annotated[
        str | None, typer.Option(help="A data set's folder (its held-out part is used), or a source to play.")
    ] = None,
    world: Annotated[
        str, typer.Option(help="A world, source:NAME, or baseline:NAME as in baseline:copy-seed.")
    ] = "rooms",
    out: Annotated[Path, typer.Option(help="Where eval.json, report.html and the pictures go.")] = Path(
        "eval"
    ),
    source: Annotated[str | None, typer.Option(help="The real game, for what only it can judge.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer windows.")] = False,
    figures: Annotated[bool, typer.Option("--figures", help="Only what the card shows first.")] = False,
    protocol: Annotated[list[str] | None, typer.Option(help="Only this protocol; can be repeated.")] = None,
    compare: Annotated[
        tuple[str, str] | None, typer.Option(help="Two worlds or eval.json files: which is better?")
    ] = None,
    ablations: Annotated[
        bool, typer.Option("--ablations", help="What each part of the memory is worth.")
    ] = False,
    beside: Annotated[
        list[str] | None, typer.Option(help="With --ablations: another world, such as one trained --plain.")
    ] = None,
    head_steps: Annotated[int | None, typer.Option(min=1, max=8, help="Other than the world's own.")] = None,
    card: Annotated[bool, typer.Option("--card", help="Land eval.json and the scores in the world.")] = False,
) -> None:
    """Measures a world against held-out episodes of its real game."""
    from functools import partial

    from game.machine import describe_machine
    from world_model.evaluation import command
    from world_model.evaluation.summary import summary_markdown
    from world_model.paths import find_world
    from world_model.training.card import add_evaluation, refuse_smaller
    from world_model.world import batch_dream

    if card and (protocol or compare or ablations):
        raise typer.BadParameter("--card takes a whole pass: not --protocol, --compare or --ablations")
    if beside and not ablations:
        raise typer.BadParameter("--beside goes with --ablations")
    folder = find_world(world) if card else None
    load = partial(batch_dream, head_steps=head_steps)
    request = command.Request(
        against, out, source, quick, figures, tuple(protocol or ()), tuple(beside or ()), describe_machine()
    )
    if folder is not None:  # before anything is measured for nothing
        refuse_smaller(folder, request.plan.to_json())
    if compare:
        typer.echo(command.compare_two(request, *compare, load, typer.echo))
    elif ablations:
        typer.echo(command.ablate_one(request, world, load, typer.echo))
    else:
        result = command.evaluate_one(request, world, load, typer.echo)
        typer.echo(summary_markdown(result))
        if folder is not None:
            add_evaluation(folder, result, sys.argv[1:])


@app.command()
def doctor() -> None:
    """Looks at this machine and says what to mend."""
    from game.doctor import examine, report
    from game.speaker import default_device
    from game.window import sdl_driver

    typer.echo(report(examine(sdl_driver, default_device)))


def _load_world(name: str):  # type: ignore[no-untyped-def] # its type would cost the import of torch
    from world_model import load_world

    return load_world(name)


def with_command(arguments: list[str]) -> list[str]:
    """Options without a command are those of `play`."""
    plays = bool(arguments) and arguments[0].startswith("-") and arguments[0] != "--help"
    return ["play", *arguments] if plays else arguments


def main() -> None:
    """Runs the command line; errors that a person can mend are one line and an exit code."""
    try:
        app(with_command(sys.argv[1:]))
    except ReverieError as err:
        message = " ".join(str(err).split())
        print(f"error: {message}", file=sys.stderr)
        sys.exit(err.exit_code)
    except ValueError as err:  # an argument that fits no type but makes no sense
        print(f"error: {err}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
