"""What `main.py eval` does: which data, which dreamer, one evaluation, a comparison or the ablations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from world_model.checkpoint import read_world_json
from world_model.data.collect import record_episode
from world_model.data.episodes import SPLITS, write_episode
from world_model.data.sources import SOURCES, Source, make_source
from world_model.evaluation.ablations import ablation_tables, ablations
from world_model.evaluation.choose import Load, choose_dreamer, load_for
from world_model.evaluation.compare import compare, comparison_markdown, comparison_tables
from world_model.evaluation.html import figure, machine_table, page
from world_model.evaluation.plan import FIGURES, FULL, QUICK, Plan, check_protocols
from world_model.evaluation.plots import draw_differences, have_matplotlib
from world_model.evaluation.protocol import Dreamer
from world_model.evaluation.report import INSTALL, compact_json, evaluate, fresh_folder
from world_model.evaluation.tables import as_html, markdown
from world_model.files import read_json, write_atomic
from world_model.paths import find_world
from world_model.types import DataError, SourceError

Say = Callable[[str], None]

RECORDED = {True: 6, False: 16}
"""Episodes that are played for `--against SOURCE`, by whether the pass is quick."""
RECORDED_TICKS = 1200
COMPARED = ("one-tick", "rollout", "collapse")
"""Protocols of a comparison, if none is named."""


@dataclass(frozen=True)
class Request:
    """What is asked for. `against`: a data set's folder or a source's name. `beside`: worlds that ablations
    are measured beside. `machine`: shown in reports."""

    against: str | None
    out: Path
    source: str | None = None
    quick: bool = False
    figures: bool = False
    protocols: Sequence[str] = ()
    beside: Sequence[str] = ()
    machine: Mapping[str, Any] = field(default_factory=dict)

    @property
    def plan(self) -> Plan:
        """Full, quick, or the figures that decide."""
        return FIGURES if self.figures else QUICK if self.quick else FULL


def evaluate_one(request: Request, name: str, load: Load, say: Say) -> dict[str, Any]:
    """`report.evaluate` of the dreamer `name` (see `choose.choose_dreamer`)."""
    request, root = _prepare(request, say)
    dreamer = choose_dreamer(name, load, root)
    try:
        return evaluate(
            dreamer,
            root,
            request.quick,
            request.out,
            request.source,
            request.plan,
            say,
            request.protocols,
            request.machine,
            weights_of(dreamer, name),
        )
    finally:
        close = getattr(dreamer, "close", None)
        if close is not None:
            close()


def weights_of(dreamer: Dreamer, name: str) -> str | None:
    """`weights_sha256` of the world that a dreamer was chosen from by `name`; None for what is no world."""
    if not hasattr(dreamer, "engine"):
        return None
    world = (name.split(":", 2)[2:] or ["rooms"])[0] if name.startswith("baseline:") else name
    return str(read_world_json(find_world(world))["weights_sha256"])


def ablate_one(request: Request, name: str, load: Load, say: Say) -> str:
    """`ablations.ablations` of the world `name`; returns the tables as Markdown."""
    request, root = _prepare(request, say)
    result = ablations(
        load_for(name, load, root),
        root,
        request.out,
        request.plan,
        request.source,
        say,
        request.machine,
        {_label(other): load_for(other, load, root) for other in request.beside},
    )
    return markdown(ablation_tables(result))


def compare_two(request: Request, first: str, second: str, load: Load, say: Say) -> str:
    """Compares two dreamers, or two `eval.json` files, window by window; returns the tables as Markdown.

    What is no file is evaluated first, into `out`/a and `out`/b. Writes compare.json, .md and .html.
    """
    if request.against is not None:
        request, _ = _prepare(request, say)
    protocols = check_protocols(request.protocols) if request.protocols else COMPARED
    documents = []
    for name, folder in ((first, "a"), (second, "b")):
        if Path(name).is_file():
            documents.append(read_json(Path(name)))
            continue
        say(f"{folder}: {name}")
        own = replace(request, out=request.out / folder, protocols=protocols)
        documents.append(evaluate_one(own, name, load, say))
    names = _labels(first, second)
    result = compare(*documents)
    _write_comparison(request, result, names)
    return comparison_markdown(result, *names)


def data_of(against: str | None, out: Path, quick: bool, say: Say) -> tuple[Path, str | None]:
    """The data set to measure on, and the source if it was named instead of a folder.

    A source is played by walkers under seeds that no training uses, into `out`/held_out; what is there
    already is used again. Raises DataError for neither a folder nor a source.
    """
    if against is None:
        raise DataError("say what to measure against: --against DIR (what collect wrote) or a source's name")
    if Path(against).is_dir():
        return Path(against), None
    if against not in SOURCES and not against.startswith("gym:"):
        raise DataError(
            f"{against} is neither a folder nor a source; there are {', '.join(SOURCES)} and gym:ENV_ID"
        )
    root = out / "held_out" / against.replace(":", "_").replace("/", "_")
    missing = [i for i in range(RECORDED[quick]) if not _episode(root, i).exists()]
    if missing:
        game, silent = _with_sound_if_there(against)
        say(f"playing {len(missing)} held-out episodes of {against}{silent}")
        try:
            for i in missing:
                episode = record_episode(game, SPLITS["test"] + i, RECORDED_TICKS)
                write_episode(_episode(root, i), episode)
        finally:
            game.close()
    return root, against


def _prepare(request: Request, say: Say) -> tuple[Request, Path]:
    """Checks what is cheap to check, and settles the data."""
    check_protocols(request.protocols)
    root, source = data_of(request.against, request.out, request.quick, say)
    if request.source or source:
        make_source(request.source or source or "", sound=False).close()
    return replace(request, against=str(root), source=request.source or source), root


def _with_sound_if_there(source: str) -> tuple[Source, str]:
    """The game, without its sound where that cannot be recorded: pictures are measured all the same. And what
    to say of it."""
    try:
        return make_source(source), ""
    except SourceError as err:
        return make_source(source, sound=False), f" without sound ({err})"


def _episode(root: Path, index: int) -> Path:
    return root / "val" / f"ep_{SPLITS['test'] + index:010d}"


def _labels(first: str, second: str) -> tuple[str, str]:
    """Short names, told apart where they are the same."""
    a, b = (_label(name) for name in (first, second))
    return (a, b) if a != b else (f"{a} (a)", f"{b} (b)")


def _label(name: str) -> str:
    path = Path(name)
    return path.parent.name if path.name == "eval.json" else path.name


def _write_comparison(request: Request, result: dict[str, Any], names: tuple[str, str]) -> None:
    fresh_folder(request.out)
    tables = comparison_tables(result, *names)
    parts = [as_html(tables[0])]
    if result["parts"] and have_matplotlib():
        path = request.out / "plot_difference.png"
        label = f"PSNR, {names[0]} minus {names[1]}, dB"
        parts.append(figure(draw_differences(path, result["parts"], label), label, "plot"))
    elif result["parts"]:
        parts.append(f"<p class=note>{INSTALL}</p>")
    parts += [as_html(t) for t in (*tables[1:], machine_table(request.machine))]
    named = {"a": names[0], "b": names[1]} | result
    write_atomic(request.out / "compare.json", [compact_json(named).encode()])
    write_atomic(request.out / "compare.md", [comparison_markdown(result, *names).encode()])
    html = page(f"{names[0]} against {names[1]}", parts)
    write_atomic(request.out / "compare.html", [html.encode()])
