"""docs/systems.md: nothing that the papers' tables name is missing, and what it says of ours is so."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from blemish.registry import METHODS, make_config, method_class

ROOT = Path(__file__).parents[2]
DATA = tomllib.loads((ROOT / "docs" / "systems.toml").read_text(encoding="utf-8"))
SYSTEMS = DATA["systems"]

UNLABELLED = "RD, SoftPatch, InReaCh, FUN-AD, CDD"
INDUSTRIAL = "DRAEM, RD4AD, PatchCore, RD++, DMAD, D3AD, CKAAD"
MEMORY = "SPADE, PaDiM, PatchCore-25, PatchCore-10, PatchCore-1"
NAMED = {
    "fmam 1, 3": "NKD, NKD+FMAM",
    "fmam 2, 4": "RKD, RKD+FMAM",
    "fmam 5": "RKD, vector; RKD, layer; RKD+FMAM, vector; RKD+FMAM, layer",
    "cdd 1, 2": f"{UNLABELLED}, URD",
    "cdd A3, A4, A5": f"{UNLABELLED}, URD, ReContrast",
    "cdd 3": "RD, SoftPatch, InReaCh, CDD",
    "cdd A6, A7, A8": UNLABELLED,
    "cdd 4": "RD; CDD: D.C. + P.N.; CDD: + Conf.G.; CDD: + Conf.D.; CDD: + F.P.; CDD: + Reg.",
    "cdd 5": "CDD, K = 2; CDD, K = 3; CDD, K = 4; CDD, K = {2,3,3,2}; CDD, K = {2,3,4,3,2}",
    "cdd 6": "CDD, All; CDD, Next; CDD, Consensual",
    "cdd A1": "CDD, r_normal 0; CDD, r_normal 0.1; CDD, r_normal 0.3; CDD, r_normal 0.5; CDD, r_normal 0.7",
    "cdd A2": "CDD, lambda 0; CDD, lambda 1; CDD, lambda e/E; CDD, lambda S",
    "cdd Figure 3": "RD, CDD",
    "rd++ 1": "CSFlow, FastFlow, CFA, PatchCore, RD, RD++",
    "rd++ 2, 4, 5": "FastFlow, CFA, PatchCore, RD, RD++",
    "rd++ 3": "CFA, PatchCore, RD, RD++",
    "rd++ 6": "RD; RD + (SSOT); RD + (SSOT + Con); RD++",
    "rd++ 7": "RD++, noise 0.1; RD++, noise 0.2; RD++, noise 0.3; RD++, noise 0.4; RD++, noise 0.5",
    "rd++ 8": "RD, RD++",
    "ckaad 1": "GANomaly, DifferNet, FastFlow, AE-FLOW, ReContrast, Recon, PReNet, Deep SAD, AA-BiGAN, DRA, DevNet, "
    "CKAAD",
    "ckaad 2": f"PaDiM, DeSTSeg, {INDUSTRIAL}",
    "ckaad 3": "Recon, ReconSub, GAN, CKAImg, CKAPatch",
    "ckaad 4": "CKAAD",
    "ckaad 5": "RD, Recon, Deep SAD, AA-BiGAN, DRA, DevNet, CKAAD",
    "ckaad 6": "CKAAD, batch norm; CKAAD, instance norm",
    "ckaad 7, 8": INDUSTRIAL,
    "patchcore S1": "GeoTrans, GANomaly, DSEBM, OCSVM, ITAE, CAVGA-R_w, PatchSVDD, DifferNet, MahalanobisAD, PaDiM*, "
    + MEMORY,
    "patchcore S2": f"vis. expl. VAE, AE_SSIM, gamma-VAE + grad., CAVGA-R_w, PatchSVDD, {MEMORY}",
    "patchcore S3": f"AE_SSIM, Student, {MEMORY}",
    "patchcore S4": "PatchCore-1, levels 2, 3; PatchCore-1, levels 1, 2, 3",
}
"""Tables of the papers and the systems of their rows, read from the papers apart from the page's data."""


@pytest.mark.parametrize("place", NAMED)
def test_every_system_of_a_table_is_there_with_what_the_table_prints(place: str) -> None:
    paper, tables = place.split(" ", 1) if place != "cdd Figure 3" else ("cdd", "Figure 3")
    names = NAMED[place].split("; " if ";" in NAMED[place] else ", ")
    for table in tables.split(", "):
        blocks = [block for block in DATA["printed"] if block["paper"] == paper and table in block["tables"]]
        listed = {name for block in blocks for name in block["rows"]}
        assert listed == set(names), table
        assert all(block["unit"] in ("percent", "fraction") for block in blocks)


def test_no_name_stands_alone() -> None:
    printed = {name for block in DATA["printed"] for name in block["rows"]}
    assert printed <= set(SYSTEMS)
    assert {block["paper"] for block in DATA["printed"]} == set(DATA["papers"])


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_system_is_a_method_of_ours_with_options_that_it_takes_or_says_why_not(name: str) -> None:
    system = SYSTEMS[name]
    assert ("method" in system) != ("why" in system)
    assert set(system) <= {"method", "options", "asked", "note", "why"}
    if "method" in system:
        assert system["method"] in METHODS, f"no method {system['method']!r}: name it as the registry does"
        make_config(method_class(system["method"]), system.get("options", {}))


def test_means_of_the_ablations_are_those_of_their_figures() -> None:
    """The page's figures were typed: the papers' own means catch a wrong digit."""
    checked = 0
    for block in (block for block in DATA["printed"] if block["figures"].endswith("their mean")):
        for name, figures in block["rows"].items():
            *three, mean = map(float, figures.split(" / "))
            assert mean == pytest.approx(sum(three) / 3, abs=1.1e-4), (block["tables"], name)
            checked += 1
    assert checked == 23


def test_the_page_is_fresh() -> None:
    check = [sys.executable, str(ROOT / "scripts" / "systems_page.py"), "--check"]
    done = subprocess.run(check, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
