"""Write ``results/verdicts.md``: what models promised of good parts, and what the test sets' good parts met.

python scripts/verdicts_table.py            writes
python scripts/verdicts_table.py --check    exit code 1 if the file is stale
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from blemish.bench.ledger import FILE, Ledger

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "results" / "verdicts.md"
HEAD = """# Promised and observed

Made by `scripts/verdicts_table.py` from `results/ledger.jsonl`; the recipe is `recipes/claims/verdicts-real.toml`.
Rates are shares of parts. *Stated* is the rate the model states with the bound it stays below (95 % confidence for a
promise, roughly for an estimate); *observed* is what the test set's good parts met, with the 95 % interval of that
observation. *Escapes* are bad parts of which no image was rejected; those that did not go to review either were judged
*ok*. *Flagged* are good parts that were rejected or sent to review. The rows are of 2026-11-22, before thresholds of
few parts came from a fitted tail.

| set | calibrated on | stated | observed | consistent | good flagged | escapes | bad judged ok |
|---|---|---|---|---|---|---|---|
"""

WHY = """
**Where the observation leaves the statement: `elpv_mono`.** A shift between train and test, not a mistake: its training
cells are files 4 to 1236 of the data set, its good test cells files 1553 to 2444, from other modules. On many of these
the bus bars end before the cell's edge, which no training cell shows; the overlays mark exactly those six ends. A
promise speaks of parts like those it was calibrated on. A handful of the new module's good cells through
`blemish calibrate`, or better into the training folder, is the way out.

**Why so many escapes?** A promise of 1 % that rests on 99 parts puts the threshold at the strangest of them. Few sets
separate their worst good part from most defects; the review band (five times the rate when these rows were made,
now a further share of twice the rate) catches part of the rest, and `--false-reject 0.05` trades rejected good parts
for found defects.
"""


def line(row: dict[str, Any]) -> str:
    test = row["test"]
    low, high = test["false_reject_interval"]
    stated, bound = test["promised_rate"], test["promised_bound"]
    # The observation speaks against the statement only if its whole interval lies above the bound.
    consistent = "yes" if low <= bound else "**no**"
    cells = (
        row["set"],
        f"{test['calibration_parts']} parts, {test['calibration']}",
        f"{stated:.1%} (below {bound:.1%})",
        f"{test['false_reject_rate']:.1%} of {test['false_reject_parts']} ({low:.1%} to {high:.1%})",
        consistent,
        f"{test['good_flagged_rate']:.1%}",
        f"{test['escape_rate']:.1%} of {test['escape_parts']}",
        f"{test['bad_judged_ok_rate']:.1%}",
    )
    return f"| {' | '.join(cells)} |\n"


def main() -> None:
    rows = [row for row in Ledger(ROOT / "results" / FILE).done().values() if row["test"].get("promised_rate")]
    rows.sort(key=lambda row: (row["label"], row["set"]))
    text = HEAD + "".join(line(row) for row in rows) + WHY
    if "--check" in sys.argv[1:]:
        if not TARGET.is_file() or TARGET.read_text(encoding="utf-8") != text:
            raise SystemExit("results/verdicts.md is stale: run python scripts/verdicts_table.py")
    else:
        TARGET.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
