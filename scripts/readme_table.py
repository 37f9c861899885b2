"""Write what stands in ``results/ledger.jsonl`` into the README, between its two markers, and into results/tables.md.

python scripts/readme_table.py            writes
python scripts/readme_table.py --check    only says whether both are up to date (exit code 1 if not)
"""

from __future__ import annotations

import sys
from pathlib import Path

from blemish.bench.session import readme_tables, results_page

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"


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
