"""Write each method's options, as its config describes them, between the two markers of its page in docs/methods/.

python scripts/method_pages.py            writes
python scripts/method_pages.py --check    only says whether all pages are up to date (exit code 1 if not)
"""

from __future__ import annotations

import sys
from pathlib import Path

from blemish.registry import METHODS, method_class, option_table

PAGES = Path(__file__).resolve().parent.parent / "docs" / "methods"
OPTIONS, LIST = "options", "methods"


def filled(page: Path, name: str, table: list[str]) -> str:
    """The page with ``table`` between its markers."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise SystemExit(f"{page.name} has no {begin} ... {end}: put both lines where the table belongs")
    return "\n".join([before + begin, "", *table, "", end + after])


def options_of(name: str) -> list[str]:
    """A line for each."""
    rows = option_table(method_class(name)).items()
    lines = [f"| `{option}` | `{row['default']}` | {row['takes']} | {row['meaning']} |" for option, row in rows]
    return ["| option | default | takes | meaning |", "|---|---|---|---|", *lines]


def main() -> None:
    """Write or check."""
    listed = [
        f"| [`{name}`]({name}.md) | {e.family} | {e.regime} | {'yes' if e.has_map else 'no'} | {e.cost} "
        f"| {'yes' if e.exports else 'no'} | {e.idea} |"
        for name, e in METHODS.items()
    ]
    head = ["| method | family | regime | map | learns in | exports | idea |", "|---|---|---|---|---|---|---|"]
    fresh = {PAGES / f"{name}.md": (OPTIONS, options_of(name)) for name in METHODS}
    fresh[PAGES / "README.md"] = (LIST, [*head, *listed])
    for page, (name, table) in fresh.items():
        text = filled(page, name, table)
        if "--check" not in sys.argv[1:]:
            page.write_text(text, encoding="utf-8")
        elif page.read_text(encoding="utf-8") != text:
            raise SystemExit(f"{page.name} is stale: run python scripts/method_pages.py")


if __name__ == "__main__":
    main()
