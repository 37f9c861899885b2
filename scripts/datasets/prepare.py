"""Check a copy of MVTec AD, VisA or ISIC 2018 (task 3) and write the papers' split of it as manifests.

python scripts/datasets/prepare.py mvtec_ad DIR [--category bottle]
python scripts/datasets/prepare.py visa DIR
python scripts/datasets/prepare.py isic2018 DIR

One manifest a category is written into DIR: NAME.csv or CATEGORY.csv. Where to get the sets: blemish datasets.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from blemish.data.public import PUBLIC_SETS, write_public


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=[name for name, one in PUBLIC_SETS.items() if not one.script])
    parser.add_argument("root", type=Path)
    parser.add_argument("--category", action="append", help="only this one; repeatable")
    given = parser.parse_args(argv)
    for category in given.category or PUBLIC_SETS[given.name].categories or ("",):
        path, lacking = write_public(given.name, given.root, given.root / f"{category or given.name}.csv", category)
        print(path, "whole" if not lacking else f"NOT WHOLE: {'; '.join(lacking)}")


if __name__ == "__main__":
    main()
