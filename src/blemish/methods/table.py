"""Names of methods, as a literal table of strings: nothing is imported until it is asked for."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from blemish.contract import Regime


Family = Literal[
    "memory",
    "density",
    "teacher and student",
    "one class",
    "flow",
    "made-up defects",
    "reconstruction",
    "self-supervised",
    "known defects",
]
Cost = Literal["seconds", "minutes", "hours"]


@dataclass(frozen=True)
class MethodEntry:
    """One line of ``blemish methods``. Idea and paper are the first and last paragraphs of the method's file."""

    target: str
    regime: Regime
    family: Family
    cost: Cost = "seconds"  # what learning thirty images of 256 pixels takes on two cores
    has_map: bool = True
    exports: bool = True  # False where a verdict needs a gradient
    version: int = 1  # grows when a change moves a method's figures: the bench then measures anew
    summary: str | None = None  # in place of the file's, where several methods share it

    @property
    def idea(self) -> str:
        return self.summary or self._paragraphs()[0].partition(": ")[2].removesuffix(".")

    @property
    def paper(self) -> str:
        return self._paragraphs()[-1].removesuffix(".")

    def _paragraphs(self) -> list[str]:
        """Of the file's docstring, which is read and not imported: that would take seconds."""
        file = importlib.util.find_spec(self.target.partition(":")[0])
        text = Path(file.origin).read_text(encoding="utf-8") if file and file.origin else ""
        docstring = text.partition('"""')[2].partition('"""')[0].strip()
        return [" ".join(paragraph.split()) for paragraph in docstring.split("\n\n")]


METHODS: dict[str, MethodEntry] = {
    "patchcore": MethodEntry("blemish.methods.patchcore:PatchCore", "clean", "memory"),
    "nkd": MethodEntry("blemish.methods.nkd:NKD", "clean", "teacher and student", cost="hours", version=2),
    "rd": MethodEntry("blemish.methods.rd:RD", "clean", "teacher and student", cost="hours"),
    "rdpp": MethodEntry("blemish.methods.rdpp:RDPP", "clean", "teacher and student", cost="hours"),
    "supersimplenet": MethodEntry(
        "blemish.methods.supersimplenet:SuperSimpleNet", "clean", "made-up defects", cost="minutes", version=2
    ),
    "draem": MethodEntry("blemish.methods.draem:DRAEM", "clean", "made-up defects", cost="hours", version=2),
    "destseg": MethodEntry("blemish.methods.destseg:DeSTSeg", "clean", "made-up defects", cost="hours", version=2),
    "fmam": MethodEntry("blemish.methods.fmam:FMAM", "clean", "teacher and student", cost="hours"),
    "stfpm": MethodEntry("blemish.methods.stfpm:STFPM", "clean", "teacher and student", cost="minutes", version=2),
    "cfa": MethodEntry("blemish.methods.cfa:CFA", "clean", "memory", cost="minutes"),
    "recontrast": MethodEntry("blemish.methods.recontrast:ReContrast", "clean", "teacher and student", cost="hours"),
    "urd": MethodEntry("blemish.methods.urd:URD", "clean", "teacher and student", cost="hours"),
    "dmad": MethodEntry("blemish.methods.dmad:DMAD", "clean", "teacher and student", cost="hours"),
    "padim": MethodEntry("blemish.methods.padim:PaDiM", "clean", "density"),
    "spade": MethodEntry("blemish.methods.spade:SPADE", "clean", "memory"),
    "students": MethodEntry("blemish.methods.students:Students", "clean", "teacher and student", cost="hours"),
    "ensemble": MethodEntry(
        "blemish.methods.patchcore:PatchCoreEnsemble",
        "clean",
        "memory",
        summary="patchcore by several backbones, brought to one scale and averaged",
    ),
    "subspacead": MethodEntry("blemish.methods.subspacead:SubspaceAD", "clean", "density"),
    "fastflow": MethodEntry("blemish.methods.fastflow:FastFlow", "clean", "flow", cost="minutes"),
    "csflow": MethodEntry("blemish.methods.csflow:CSFlow", "clean", "flow", cost="hours", version=2),
    "differnet": MethodEntry(
        "blemish.methods.differnet:DifferNet", "clean", "flow", cost="minutes", has_map=False, version=2
    ),
    "aeflow": MethodEntry("blemish.methods.aeflow:AEFlow", "clean", "flow", cost="minutes", version=2),
    "mahalanobis": MethodEntry("blemish.methods.mahalanobis:Mahalanobis", "clean", "density", has_map=False),
    "ae": MethodEntry("blemish.methods.ae:AE", "clean", "reconstruction", cost="hours"),
    "gammavae": MethodEntry("blemish.methods.gammavae:GammaVAE", "clean", "reconstruction", cost="hours"),
    "expvae": MethodEntry("blemish.methods.expvae:ExpVAE", "clean", "reconstruction", cost="hours", exports=False),
    "ocsvm": MethodEntry("blemish.methods.ocsvm:OCSVM", "clean", "one class", has_map=False),
    "ganomaly": MethodEntry(
        "blemish.methods.ganomaly:GANomaly", "clean", "reconstruction", cost="minutes", has_map=False
    ),
    "itae": MethodEntry("blemish.methods.itae:ITAE", "clean", "reconstruction", cost="hours"),
    "dsebm": MethodEntry("blemish.methods.dsebm:DSEBM", "clean", "reconstruction", cost="minutes"),
    "geotrans": MethodEntry(
        "blemish.methods.geotrans:GeoTrans", "clean", "self-supervised", cost="minutes", has_map=False
    ),
    "patchsvdd": MethodEntry(
        "blemish.methods.patchsvdd:PatchSVDD", "clean", "self-supervised", cost="hours", version=2
    ),
    "cdd": MethodEntry("blemish.methods.cdd:CDD", "contaminated", "teacher and student", cost="hours"),
    "softpatch": MethodEntry("blemish.methods.softpatch:SoftPatch", "contaminated", "memory"),
    "meds": MethodEntry("blemish.methods.meds:MeDS", "contaminated", "memory"),
    "inreach": MethodEntry("blemish.methods.inreach:InReaCh", "contaminated", "memory", cost="minutes", version=3),
    "ckaad": MethodEntry("blemish.methods.ckaad:CKAAD", "weak", "teacher and student", cost="hours"),
    "cavga": MethodEntry("blemish.methods.cavga:CAVGA", "weak", "reconstruction", cost="hours"),
    "aabigan": MethodEntry("blemish.methods.aabigan:AABiGAN", "weak", "reconstruction", cost="minutes", has_map=False),
    "deepsad": MethodEntry("blemish.methods.deepsad:DeepSAD", "weak", "one class", cost="minutes", has_map=False),
    "devnet": MethodEntry("blemish.methods.devnet:DevNet", "weak", "known defects", cost="minutes"),
    "dra": MethodEntry("blemish.methods.dra:DRA", "weak", "known defects", cost="minutes"),
    "prenet": MethodEntry("blemish.methods.prenet:PReNet", "weak", "known defects", cost="minutes", has_map=False),
}
