"""The table of image sets: complete, licensed, and quick to read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from blemish.data.public import DEMO_CATEGORIES, PUBLIC_SETS, datasets

SCRIPTS = Path(__file__).parents[2] / "scripts" / "datasets"


def test_every_set_states_its_origin_and_licence_and_what_prepares_it():
    rows = datasets()
    assert [name for name, _, _ in rows] == [*DEMO_CATEGORIES, *PUBLIC_SETS]
    for name, shows, origin in rows:
        known = DEMO_CATEGORIES.get(name) or PUBLIC_SETS[name]
        assert shows == known.shows and known.licence in origin and known.source in origin
        if name in PUBLIC_SETS:
            assert (SCRIPTS / known.script.split()[0]).is_file()


def test_published_numbers_add_up():
    """The totals that the papers print."""

    def totals(name):
        return [sum(column) for column in zip(*(images.values() for images in PUBLIC_SETS[name].images.values()))]

    assert totals("mvtec_ad") == [3629, 1725]
    assert totals("visa") == [9621, 1200]
    for name in ("mvtec_ad", "visa"):
        assert tuple(PUBLIC_SETS[name].images) == tuple(PUBLIC_SETS[name].categories)


def test_the_table_imports_neither_torch_nor_numpy():
    code = "import sys, blemish.data.public as p; p.datasets(); sys.exit(bool({'torch', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
