"""Write the results that stand in ``results/ledger.jsonl`` into the README, between its two markers.

python scripts/readme_table.py            writes
python scripts/readme_table.py --check    only says whether the README is up to date (exit code 1 if not)
"""

from __future__ import annotations

import sys
from pathlib import Path

from blemish.bench.session import readme_tables

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
    path = ROOT / "README.md"
    before = path.read_text(encoding="utf-8")
    after = fresh(before, readme_tables(ROOT))
    if "--check" in sys.argv[1:]:
        if before != after:
            raise SystemExit("README.md is stale: run python scripts/readme_table.py")
    else:
        path.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    main()
