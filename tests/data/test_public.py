"""The table of image sets: complete, licensed, and quick to read."""

import subprocess
import sys
from pathlib import Path

from blemish.data.public import DEMO_CATEGORIES, PUBLIC_SETS, datasets

SCRIPTS = Path(__file__).parents[2] / "scripts" / "datasets"


def test_every_set_states_its_origin_and_licence_and_what_prepares_it():
    known = {**DEMO_CATEGORIES, **PUBLIC_SETS}
    assert [name for name, _, _ in datasets()] == [*known]
    for name, shows, origin in datasets():
        assert shows == known[name].shows and known[name].licence in origin and known[name].source in origin
    assert all((SCRIPTS / row.script.split()[0]).is_file() for row in PUBLIC_SETS.values())
    # The totals that the papers print.
    for name, totals in {"mvtec_ad": [3629, 1725], "visa": [9621, 1200]}.items():
        row = PUBLIC_SETS[name]
        assert [sum(column) for column in zip(*(numbers.values() for numbers in row.images.values()))] == totals
        assert list(row.images) == list(row.categories)


def test_reading_sets_imports_no_torch_and_the_table_no_numpy():
    """The command line prints what it found within half a second."""
    for module, heavy in (("testset", "{'torch', 'timm'}"), ("public", "{'torch', 'numpy'}")):
        code = f"import sys, blemish.data.{module}; sys.exit(bool({heavy} & set(sys.modules)))"
        assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
