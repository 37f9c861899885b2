"""Write what stands in ``results/ledger.jsonl`` into the README, between its two markers, and into results/tables.md.

python scripts/readme_table.py            writes
python scripts/readme_table.py --check    only says whether both are up to date (exit code 1 if not)
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from blemish.bench.ledger import FILE, Ledger
from blemish.bench.recipe import METRICS, load_recipe
from blemish.bench.summary import Summary, footnotes, metric_table, summarise, timing_table
from blemish.report.html import environment

ROOT = Path(__file__).resolve().parent.parent
SHOWN = ("patchcore-real", "contaminated-real", "few-labels")
"""Recipes whose first figure stands in the README; all of them stand in results/tables.md."""

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"


WORDS, MARKDOWN = (environment(False).get_template(f"{name}.j2").module for name in ("words", "markdown"))


def measured(root: Path) -> Iterator[tuple[Path, Summary]]:
    """Recipes with figures.

    ``quick.toml`` is left out: its set shows that things work, and is no evidence of more. So are recipes with a
    calibration: ``scripts/verdicts_table.py`` shows what those are about.
    """
    rows = Ledger(root / "results" / FILE).rows()
    for path in sorted((root / "recipes").rglob("*.toml")):
        summary = summarise(load_recipe(path), rows)
        if path.stem != "quick" and summary.recipe.protocol.calibration == "none" and summary.rows:
            yield path, summary


def result_tables(summary: Summary, metrics: Sequence[str]) -> str:
    """One table a metric."""
    parts = []
    for metric in metrics:
        table = metric_table(summary, metric)
        if table[1]:
            parts += [f"**{METRICS[metric]}**", MARKDOWN.tables([table]).strip()]
    return "\n\n".join([*parts, *footnotes(summary, metrics)])


def readme_tables(root: Path) -> str:
    """The first figure of the recipes shown, where a repository has rows of them in its ledger."""
    parts = []
    for path, summary in measured(root):
        if path.stem not in SHOWN:
            continue
        parts += [f"### {summary.recipe.title}", result_tables(summary, summary.recipe.metrics[:1])]
    return "\n\n".join(part for part in parts if part)


def results_page(root: Path) -> str:
    """All figures of those recipes, pair by pair and with times."""
    parts = ["# Measured", "Made by `scripts/readme_table.py` from `results/ledger.jsonl`."]
    for path, summary in measured(root):
        command = f"`blemish bench {path.relative_to(root).as_posix()} --data DIR`"
        compared = "\n".join(f"- {WORDS.compared(pair)}" for pair in summary.comparisons(summary.recipe.metrics[0]))
        about = " ".join(summary.recipe.about.split())
        made = f"{WORDS.made_with(summary)} The same on your machine: {command}"
        parts += [f"## {summary.recipe.title}", about, result_tables(summary, summary.recipe.metrics), compared]
        parts += [MARKDOWN.tables([timing_table(summary)]).strip(), made]
    return "\n\n".join(part for part in parts if part) + "\n"


def fresh(readme: str, tables: str) -> str:
    """The README with ``tables`` between the markers."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"README.md has no {BEGIN} ... {END}: put both lines where the results belong")
    return before + begin + "\n" + (f"\n{tables}\n\n" if tables else "") + end + after


def main() -> None:
    readme, page = ROOT / "README.md", ROOT / "results" / "tables.md"
    wanted = {readme: fresh(readme.read_text(encoding="utf-8"), readme_tables(ROOT)), page: results_page(ROOT)}
    for path, text in wanted.items():
        if "--check" not in sys.argv[1:]:
            path.write_text(text, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != text:
            raise SystemExit(f"{path.name} is stale: run python scripts/readme_table.py")


if __name__ == "__main__":
    main()
