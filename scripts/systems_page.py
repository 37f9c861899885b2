"""Write docs/systems.md: every system of the papers' tables, what it is here, what is printed and measured of it.

python scripts/systems_page.py            writes
python scripts/systems_page.py --check    exit code 1 if the page is stale

Systems and printed figures stand in docs/systems.toml, measured ones in results/ledger.jsonl.
"""

from __future__ import annotations

import json
import sys
import tomllib
from collections import defaultdict
from pathlib import Path
from typing import Any

from blemish.bench.ledger import FILE, Ledger
from blemish.bench.recipe import load_recipe
from blemish.bench.summary import shown, summarise

ROOT = Path(__file__).resolve().parent.parent
DATA, PAGE = ROOT / "docs" / "systems.toml", ROOT / "docs" / "systems.md"
METRICS = ("image_auroc", "pixel_auroc", "aupro")
HEAD = """# Systems of the papers' tables

Made by `scripts/systems_page.py` from `docs/systems.toml` and `results/ledger.jsonl`. Five papers stand behind this
project; this page names every system of their tables, says which [method](methods/README.md) and options it is here, or
why there is none, and shows what was printed and what we measured. Printed figures are the papers', on their images and
with their trainings; ours are from few public sets and mostly from short trainings: **the two cannot be compared line
by line**. How our figures were made: the recipes beside them, and [all of them](../results/tables.md).
"""
MEASURED = """## What we measured

Fractions: image AUROC / pixel AUROC / AU-PRO .30, each set's after its name; a dash where the set or the method has no
such figure; in brackets the image AUROC of the trivial cue that tells most there, brightness, contrast or gradient.
Where options are not named in the first table, rows of all settings of the method stand here.

| system | recipe: its row | sets |
|---|---|---|
"""


def table(head: str, rows: list[str]) -> str:
    return "\n".join([head, "|---" * (head.count("|") - 1) + "|", *rows])


def ours(system: dict[str, Any]) -> str:
    """Method, options and note, or the reason."""
    if "why" in system:
        return f"not built: {system['why']}"
    name = system["method"]
    written = []
    for key, value in system.get("options", {}).items():
        values = value if isinstance(value, list) else [value]
        written.append(f"{key}={','.join(one if isinstance(one, str) else json.dumps(one) for one in values)}")
    options = " ".join(written)
    known = f"[`{name}`](methods/{name}.md)" if (ROOT / "docs" / "methods" / f"{name}.md").is_file() else f"`{name}`"
    return known + f" `{options}`" * bool(options) + f"; {system.get('note')}" * ("note" in system)


def measured(systems: dict[str, Any]) -> list[str]:
    """A row for each row of a recipe that is one of the systems, or several."""
    rows, found = Ledger(ROOT / "results" / FILE).rows(), defaultdict(list)
    for path in sorted((ROOT / "recipes").rglob("*.toml")):
        summary = summarise(load_recipe(path), rows)
        for label in summary.labels:
            for own in summary.rows_of(label)[:1]:
                asked = own["configuration"]
                sets = []
                for name in dict.fromkeys(row["set"] for row in summary.rows_of(label)):
                    figures = " / ".join(shown(summary.values(label, name, metric)) for metric in METRICS)
                    cue = summary.trivial(name)
                    sets.append(f"{name} {figures}" + (f" ({cue[0]} {cue[1]:.2f})" if cue else ""))
                cell = f"`{path.relative_to(ROOT).as_posix()}`: {label} | {'; '.join(sets)} |"
                for name, system in systems.items():
                    options, others = (system.get(key, {}).items() for key in ("options", "asked"))
                    is_it = system.get("method") == asked["method"]
                    is_it = is_it and all(asked["options"].get(key) == value for key, value in options)
                    if is_it and all(asked.get(key) == value for key, value in others):
                        found[cell].append(name)
    order = {name: place for place, name in enumerate(systems)}
    rows_of = sorted(found.items(), key=lambda item: order[item[1][0]])
    return [f"| {'; '.join(names)} | {cell}" for cell, names in rows_of]


def page() -> str:
    """The whole page."""
    data = tomllib.loads(DATA.read_text(encoding="utf-8"))
    systems, places, printed = data["systems"], defaultdict(list), []
    for block in data["printed"]:
        title = f"{block['paper']} {', '.join(block['tables'])}"
        head = f"{title}: {block['what']}. {block['figures']}, {block['unit']}"
        rows = [f"| {name} | {figures} |" for name, figures in block["rows"].items()]
        printed.append(f"**{head}**\n\n{table('| system | printed |', rows)}")
        for name in block["rows"]:
            places[name] += [place for place in [title] if place not in places[name]]
    listed = [f"| {name} | {'; '.join(places[name]) or 'text alone'} | {ours(one)} |" for name, one in systems.items()]
    papers = "\n".join(f"- **{name}**: {title}" for name, title in data["papers"].items())
    parts = [HEAD + "\n" + papers, table("| system | paper and tables | here |", listed), "## What the papers print"]
    return "\n\n".join([*parts, *printed, MEASURED + "\n".join(measured(systems))]) + "\n"


def main() -> None:
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(page(), encoding="utf-8")
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != page():
        raise SystemExit("docs/systems.md is stale: run python scripts/systems_page.py")


if __name__ == "__main__":
    main()
