"""A world's CARD.md: what it is, how it was trained, what was measured."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from world_model.checkpoint import read_json, write_json
from world_model.config import WorldConfig
from world_model.evaluation.report import compact_json
from world_model.evaluation.summary import headline, summary_markdown
from world_model.files import write_atomic
from world_model.types import DataError

SCORES_BEGIN, SCORES_END = "<!-- scores: begin -->", "<!-- scores: end -->"
EVAL_NAME = "eval.json"
EVAL_BYTES = 200_000
"""A card's figures are read by people and kept in a repository, so they stay small."""
SPARKS = "▁▂▃▄▅▆▇█"


def write_card(folder: Path, config: WorldConfig, run: Path, provenance: dict[str, Any]) -> None:
    """Writes CARD.md with the run's configuration and loss curves; scores are filled in by `add_scores`."""
    records = read_metrics(run)
    lines = [
        f"# {config.name}",
        "",
        f"A dream of `{provenance['source']}`: {config.tokenizer.width} x {config.tokenizer.height} pixels, "
        f"25 ticks a second, actions {', '.join(a.name for a in config.actions)}.",
        "",
        "## Training",
        "",
        "| Stage | Steps | Minutes | Last loss | Loss over the run |",
        "|---|---|---|---|---|",
    ]
    for stage in dict.fromkeys(r["stage"] for r in records):
        losses = [r["loss"] for r in records if r["stage"] == stage and "loss" in r]
        last = [r for r in records if r["stage"] == stage][-1]
        if losses:
            minutes = last["seconds"] / 60
            row = (stage, last["step"], f"{minutes:.1f}", f"{losses[-1]:.3g}", sparkline(losses))
            lines.append("| " + " | ".join(map(str, row)) + " |")
    configuration = json.dumps(config.to_json(), indent=1)
    lines += ["", "## Scores", "", SCORES_BEGIN, "Not measured yet.", SCORES_END, "", "## Configuration", ""]
    lines += ["```json", configuration, "```", ""]
    write_atomic(folder / "CARD.md", ["\n".join(lines).encode()])


def add_evaluation(folder: Path, result: dict[str, Any], command: Sequence[str]) -> None:
    """Lands an evaluation beside a world: eval.json, the scores in CARD.md, the headline in world.json.

    Raises DataError for one that is too large or of a smaller pass than what is there (`refuse_smaller`),
    WorldError when the folder holds no world.
    """
    text = compact_json(result).encode()
    if len(text) > EVAL_BYTES:
        raise DataError(f"eval.json would have {len(text)} bytes of {EVAL_BYTES}; measure fewer windows")
    refuse_smaller(folder, result["plan"])
    add_scores(folder, summary_markdown(result), headline(result), shown_command(command))
    write_atomic(folder / EVAL_NAME, [text])


def refuse_smaller(folder: Path, plan: Mapping[str, Any]) -> None:
    """Raises DataError where `folder` already has an evaluation of these weights with more windows or longer
    ones than `plan`: a small pass would put worse figures in the place of better ones."""
    path = folder / EVAL_NAME
    if not path.exists():
        return
    old = read_json(path)
    weights = read_json(folder / "world.json").get("weights_sha256")
    if old.get("weights_sha256", weights) != weights:
        return  # of other weights: it says nothing of these
    before = old.get("plan", {})
    if any(before.get(size, 0) > plan[size] for size in ("windows", "ticks")):
        raise DataError(
            f"{path} is of a larger pass than this one; measure without --quick and --figures, or remove it"
        )


def shown_command(command: Sequence[str]) -> str:
    """A command as others can type it: paths of this machine are cut to their last two names."""
    parts = ["/".join(Path(p).parts[-2:]) if Path(p).is_absolute() else p for p in command]
    return shlex.join(["python", "main.py", *parts])


def add_scores(folder: Path, summary: str, scores: dict[str, Any], command: str) -> None:
    """Puts an evaluation into CARD.md and world.json. Raises WorldError when either is missing."""
    description = read_json(folder / "world.json")
    write_json(folder / "world.json", description | {"scores": scores})
    card = folder / "CARD.md"
    text = card.read_text() if card.exists() else f"# {description['name']}\n\n{SCORES_BEGIN}\n{SCORES_END}\n"
    before, _, rest = text.partition(SCORES_BEGIN)
    _, _, after = rest.partition(SCORES_END)
    section = f"{SCORES_BEGIN}\nMeasured with `{command}`.\n\n{summary.strip()}\n{SCORES_END}"
    write_atomic(card, [(before + section + after).encode()])


def sparkline(values: list[float], width: int = 24) -> str:
    """A curve in one line of text: means over equal parts, on the range of the values."""
    parts = [values[i * len(values) // width : (i + 1) * len(values) // width] for i in range(width)]
    means = [sum(p) / len(p) for p in parts if p]
    low, span = min(means), (max(means) - min(means)) or 1.0
    return "".join(SPARKS[min(7, int(8 * (m - low) / span))] for m in means)


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Every record of a run's metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
