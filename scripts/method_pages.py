"""Write each method's options, as its config describes them, and its figures into its page in docs/methods/.

python scripts/method_pages.py            writes
python scripts/method_pages.py --check    only says whether all pages are up to date (exit code 1 if not)
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
from methods_table import PROTOCOLS, SETS, cue_of_sets, frame, shown

from blemish.bench.ledger import FILE, Ledger
from blemish.registry import METHODS, method_class, option_table

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "docs" / "methods"
LEARNED_FROM = dict(zip(PROTOCOLS, ("good images", "a pile, judged whole", "a pile", "some known-bad")))


def filled(page: Path, text: str, name: str, table: list[str]) -> str:
    """The page's ``text`` with ``table`` between its markers."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, _, rest = text.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise SystemExit(f"{page.name} has no {begin} ... {end}: put both lines where the table belongs")
    return "\n".join([before + begin, "", *table, "", end + after])


def options_of(name: str) -> list[str]:
    """A line for each."""
    rows = option_table(method_class(name)).items()
    lines = [f"| `{option}` | `{row['default']}` | {row['takes']} | {row['meaning']} |" for option, row in rows]
    return ["| option | default | takes | meaning |", "|---|---|---|---|", *lines]


def figures_of(method: str, figures: pd.DataFrame) -> list[str]:
    """A line a training, a column a set, means of seeds; above each protocol what one trivial cue separates."""
    mine, lines = figures[figures["method"] == method], list[str]()
    for protocol, learned_from in LEARNED_FROM.items():
        of_one = mine[mine["protocol"] == protocol]
        if of_one.empty:
            continue
        cues = cue_of_sets(of_one)
        lines.append(f"| {learned_from}: one trivial cue | {' | '.join(cues.get(of, '') for of in SETS.values())} |")
        for name, of_name in of_one.groupby("name", sort=False):
            sets = dict(iter(of_name.groupby("set")))
            most = max(map(len, sets.values()))
            seeds = f", {most} seeds" if most > 1 else ""
            lines.append(f"| {name}{seeds} | {' | '.join(_cell(sets.get(of)) for of in SETS.values())} |")
    about = "Image AUROC / share of bad images caught where 5 % of the good ones are above / AU-PRO .30:"
    head = ["", f"| learned from | {' | '.join(SETS.values())} |", f"|---|{'---|' * len(SETS)}"]
    return [about, *head, *lines] if lines else ["None yet on the sets that all methods are compared on."]


def _cell(rows: pd.DataFrame | None) -> str:
    if rows is None:
        return ""
    values = rows[["auroc", "caught_at_5", "aupro"]].mean()
    return " / ".join(map(shown, values))


def main() -> None:
    """Write or check."""
    listed = [
        f"| [`{name}`]({name}.md) | {e.family} | {e.regime} | {'yes' if e.has_map else 'no'} | {e.cost} "
        f"| {'yes' if e.exports else 'no'} | {e.idea} |"
        for name, e in METHODS.items()
    ]
    head = ["| method | family | regime | map | learns in | exports | idea |", "|---|---|---|---|---|---|---|"]
    figures = frame(list(Ledger(ROOT / "results" / FILE).done().values()))
    fresh = {
        PAGES / f"{name}.md": {"options": options_of(name), "figures": figures_of(name, figures)} for name in METHODS
    }
    for page, tables in {**fresh, PAGES / "README.md": {"methods": [*head, *listed]}}.items():
        before = text = page.read_text(encoding="utf-8")
        for name, table in tables.items():
            text = filled(page, text, name, table)
        if "--check" not in sys.argv[1:]:
            page.write_text(text, encoding="utf-8")
        elif before != text:
            raise SystemExit(f"{page.name} is stale: run python scripts/method_pages.py")


if __name__ == "__main__":
    main()
