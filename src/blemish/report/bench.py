"""The bench's report: Markdown, and one page with pictures. Both go where git does not look."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from blemish.run import written_atomically

if TYPE_CHECKING:
    from blemish.bench.summary import Summary


def write_reports(summary: Summary, results: Path, reports: Path) -> list[Path]:
    """Write the report of a recipe; the files."""
    from blemish.bench.tables import markdown

    path = reports / f"{summary.recipe.name}.md"
    with written_atomically(path) as temporary:
        temporary.write_text(markdown(summary), encoding="utf-8")
    return [path]
