"""The report that is looked at: one HTML file with everything inside, no script and no network."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from world_model.evaluation.summary import introduction, summary_tables
from world_model.evaluation.tables import Table, as_html

KINDS = {".png": "image/png", ".jpg": "image/jpeg", ".gif": "image/gif"}
STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; } h3 { font-size: 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { padding: .2rem .7rem; text-align: left; border-bottom: 1px solid #8884; }
tr.met td:last-child { color: #2e933c; } tr.missed td:last-child { color: #d1495b; font-weight: bold; }
.scroll { overflow-x: auto; } .note, figcaption { opacity: .75; font-size: .9rem; }
figure { margin: 1rem 0; } img { max-width: 100%; }
img.film { width: 520px; image-rendering: pixelated; } .row { display: flex; flex-wrap: wrap; gap: 1rem; }
.plot { background: white; border-radius: 4px; }
"""


def report_html(
    result: Mapping[str, Any], folder: Path, plots: Sequence[Path], machine: Mapping[str, Any], hint: str = ""
) -> str:
    """The report of an evaluation whose pictures lie in `folder`; pictures that are not there are left out.

    `machine`: what to show of the machine, name by name. `hint`: what to install for what is missing.
    """
    first, *rest = summary_tables(dict(result))
    name = str(result["dreamer"])
    parts = [f"<p>{html.escape(introduction(dict(result)))}</p>"]
    parts += [f"<p class=note>{html.escape(hint)}</p>"] if hint else []
    parts += ["<h2>Targets</h2>", as_html(first), *_films(result, folder)]
    parts += ["<h2>Over time</h2>", *(figure(p, p.stem.removeprefix("plot_"), "plot") for p in plots)]
    parts += [*_sheets(result, folder), "<h2>Figures</h2>", *map(as_html, rest)]
    parts += ["<h2>Speed and machine</h2>", "<p>Speed: <code>python main.py bench --world NAME</code>.</p>"]
    parts += [as_html(machine_table(machine))] if machine else []
    return page(f"{name}: evaluation", parts)


def page(title: str, parts: Sequence[str]) -> str:
    """An HTML document."""
    body = "\n".join(parts)
    return (
        f"<!doctype html>\n<html lang=en><meta charset=utf-8><title>{html.escape(title)}</title>\n"
        '<meta name=viewport content="width=device-width">\n'
        f"<style>{STYLE}</style>\n<h1>{html.escape(title)}</h1>\n{body}\n</html>\n"
    )


def machine_table(machine: Mapping[str, Any]) -> Table:
    """The card of the machine."""
    rows = []
    for key, value in machine.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{k} {v}" for k, v in value.items())
        rows.append((str(key).replace("_", " "), str(value)))
    return Table("", ("Machine", ""), tuple(r for r in rows if r[1]))


def _films(result: Mapping[str, Any], folder: Path) -> list[str]:
    """Best, median and worst: moving pictures where they could be made, and strips."""
    shown = result.get("rollout", {}).get("shown")
    if shown is None:
        return []
    clips = result["rollout"]["clips"]
    films, strips = [], []
    for label in ("median", "best", "worst"):
        episode, start = clips[shown[label]]
        caption = f"{label} by {shown['by']}: {episode}, frame {start}"
        films.append(figure(folder / f"film_{label}.gif", f"real, dream; {caption}", "film"))
        strips.append(figure(folder / f"strip_{label}.png", f"real above, dream below; {caption}"))
    return ["<h2>Real left, dream right</h2>", f"<div class=row>{''.join(films)}</div>", *strips]


def _sheets(result: Mapping[str, Any], folder: Path) -> list[str]:
    parts = []
    for suffix in (".jpg", ".png"):
        if "rollout" in result:
            by = result["rollout"]["shown"]["by"]
            parts.append(figure(folder / f"windows{suffix}", f"All windows, best first by {by}, real above"))
        if "collapse" in result:
            end = result["collapse"]
            caption = f"Last frames of {end['rollouts']} rollouts of {end['ticks']} ticks"
            parts.append(figure(folder / f"ends{suffix}", caption))
    heard = (
        "Sound of three windows, real above and dream below: the best, a middling and the worst by its bangs"
    )
    parts.append(figure(folder / "sounds.png", heard))
    return ["<h2>Sheets</h2>", *parts] if any(parts) else []


def figure(path: Path, caption: str, kind: str = "") -> str:
    """A picture inside the page, or nothing where the file is missing."""
    if not path.exists():
        return ""
    data = base64.b64encode(path.read_bytes()).decode()
    source = f"data:{KINDS[path.suffix]};base64,{data}"
    text = html.escape(caption)
    return f'<figure><img class="{kind}" alt="{text}" src="{source}"><figcaption>{text}</figcaption></figure>'
