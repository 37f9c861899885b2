"""Names of methods, as a literal table of strings: nothing is imported until it is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from blemish.contract import Regime


Family = Literal[
    "memory", "density", "teacher and student", "one class", "flow", "made-up defects", "reconstruction",
    "self-supervised", "known defects",
]
Cost = Literal["seconds", "minutes", "hours"]


@dataclass(frozen=True)
class MethodEntry:
    """One line of ``blemish methods``."""

    target: str
    regime: Regime
    idea: str
    paper: str
    family: Family
    cost: Cost = "seconds"  # what learning thirty images of 256 pixels takes on two cores
    has_map: bool = True
    exports: bool = True  # False where a verdict needs a gradient
    version: int = 1  # grows when a change moves a method's figures: the bench then measures anew


METHODS: dict[str, MethodEntry] = {
    "patchcore": MethodEntry(
        "blemish.methods.patchcore:PatchCore", "clean",
        "a memory of normal patches; an image is as bad as its strangest patch",
        "Roth et al., Towards Total Recall in Industrial Anomaly Detection, CVPR 2022",
        family="memory",
    ),
    "nkd": MethodEntry(
        "blemish.methods.nkd:NKD", "clean",
        "a student of the teacher's architecture agrees with it on normal images only",
        "the baseline of FMAM's supplement; cf. Wang et al., Student-Teacher Feature Pyramid Matching, BMVC 2021",
        family="teacher and student", cost="hours", version=2,
    ),
    "rd": MethodEntry(
        "blemish.methods.rd:RD", "clean",
        "a student decodes the teacher's features from a narrow code, and only normal ones well",
        "Deng and Li, Anomaly Detection via Reverse Distillation from One-Class Embedding, CVPR 2022",
        family="teacher and student", cost="hours",
    ),
    "rdpp": MethodEntry(
        "blemish.methods.rdpp:RDPP", "clean",
        "rd behind projections that learn to undo pretended defects made of noise",
        "Tien et al., Revisiting Reverse Distillation for Anomaly Detection, CVPR 2023",
        family="teacher and student", cost="hours",
    ),
    "supersimplenet": MethodEntry(
        "blemish.methods.supersimplenet:SuperSimpleNet", "clean",
        "heads on frozen features learn to see noise in irregular spots, and known-bad images where there are",
        "Rolih et al., SuperSimpleNet: Unifying Unsupervised and Supervised Learning, ICPR 2024",
        family="made-up defects", cost="minutes",
    ),
    "draem": MethodEntry(
        "blemish.methods.draem:DRAEM", "clean",
        "one network repairs made-up defects, another learns from image and repair where they were",
        "Zavrtanik et al., DRAEM: A Discriminatively Trained Reconstruction Embedding, ICCV 2021",
        family="made-up defects", cost="hours",
    ),
    "destseg": MethodEntry(
        "blemish.methods.destseg:DeSTSeg", "clean",
        "a student gives clean features of spoiled images; a network learns which disagreements are defects",
        "Zhang et al., DeSTSeg: Segmentation Guided Denoising Student-Teacher, CVPR 2023",
        family="made-up defects", cost="hours",
    ),
    "fmam": MethodEntry(
        "blemish.methods.fmam:FMAM", "clean",
        "rd or nkd with a learned mapping on the student's features (its inside is our reading)",
        "the supplement on FMAM; neither its main text nor code was found",
        family="teacher and student", cost="hours",
    ),
    "stfpm": MethodEntry(
        "blemish.methods.stfpm:STFPM", "clean",
        "a student of the teacher's architecture; a place is bad where they differ at every level",
        "Wang et al., Student-Teacher Feature Pyramid Matching for Anomaly Detection, BMVC 2021",
        family="teacher and student", cost="minutes",
    ),
    "cfa": MethodEntry(
        "blemish.methods.cfa:CFA", "clean",
        "a layer learns to draw good features to the centres of spheres; bad ones lie far from all",
        "Lee et al., CFA: Coupled-Hypersphere-Based Feature Adaptation, IEEE Access 2022",
        family="memory",
    ),
    "recontrast": MethodEntry(
        "blemish.methods.recontrast:ReContrast", "clean",
        "rd whose encoder learns beside a frozen copy: a decoder gives each one's features from the other's",
        "Guo et al., ReContrast: Domain-Specific Anomaly Detection via Contrastive Reconstruction, NeurIPS 2023",
        family="teacher and student", cost="hours",
    ),
    "urd": MethodEntry(
        "blemish.methods.urd:URD", "clean",
        "rd whose teacher learns to see made-up defects, and whose student is helped with detail",
        "Liu et al., Unlocking the Potential of Reverse Distillation for Anomaly Detection, AAAI 2025",
        family="teacher and student", cost="hours",
    ),
    "padim": MethodEntry(
        "blemish.methods.padim:PaDiM", "clean",
        "a Gaussian of good features at every place of the image, for parts that lie alike",
        "Defard et al., PaDiM: a Patch Distribution Modeling Framework, ICPR workshops 2021",
        family="density",
    ),
    "spade": MethodEntry(
        "blemish.methods.spade:SPADE", "clean",
        "finds the good images most like this one, and in them the place most like each place",
        "Cohen and Hoshen, Sub-Image Anomaly Detection with Deep Pyramid Correspondences, 2020",
        family="memory",
    ),
    "students": MethodEntry(
        "blemish.methods.students:Students", "clean",
        "students learn to describe patches as a teacher does; bad is where they miss it, or each other",
        "Bergmann et al., Uninformed Students: Student-Teacher Anomaly Detection, CVPR 2020",
        family="teacher and student", cost="hours",
    ),
    "ensemble": MethodEntry(
        "blemish.methods.patchcore:PatchCoreEnsemble", "clean",
        "patchcore by several backbones, brought to one scale and averaged",
        "Roth et al., Towards Total Recall in Industrial Anomaly Detection, CVPR 2022, supplement",
        family="memory",
    ),
    "subspacead": MethodEntry(
        "blemish.methods.subspacead:SubspaceAD", "clean",
        "principal components of good patches; a patch is as bad as what they leave of it",
        "SubspaceAD: Training-Free Few-Shot Anomaly Detection via Subspace Modeling, CVPR 2026",
        family="density",
    ),
    "fastflow": MethodEntry(
        "blemish.methods.fastflow:FastFlow", "clean",
        "a normalising flow over each feature map; a place is bad where its features are unlikely",
        "Yu et al., FastFlow: Unsupervised Anomaly Detection and Localization via 2D Normalizing Flows, 2021",
        family="flow", cost="minutes",
    ),
    "csflow": MethodEntry(
        "blemish.methods.csflow:CSFlow", "clean",
        "one normalising flow over three sizes of the image that exchange what they see",
        "Rudolph et al., Fully Convolutional Cross-Scale-Flows for Image-based Defect Detection, WACV 2022",
        family="flow", cost="hours",
    ),
    "differnet": MethodEntry(
        "blemish.methods.differnet:DifferNet", "clean",
        "a normalising flow over a whole image's features, seen in many directions; no map",
        "Rudolph et al., Same Same But DifferNet: Semi-Supervised Defect Detection with Normalizing Flows, WACV 2021",
        family="flow", cost="minutes", has_map=False,
    ),
    "aeflow": MethodEntry(
        "blemish.methods.aeflow:AEFlow", "clean",
        "an auto-encoder with a normalising flow in its middle: what is unlikely, or given back badly, is bad",
        "Zhao et al., AE-FLOW: Autoencoders with Normalizing Flows for Medical Images Anomaly Detection, ICLR 2023",
        family="flow", cost="minutes",
    ),
    "mahalanobis": MethodEntry(
        "blemish.methods.mahalanobis:Mahalanobis", "clean",
        "how far a whole image's features lie from a Gaussian of good ones; no map",
        "Rippel et al., Modeling the Distribution of Normal Data in Pre-Trained Deep Features, ICPR 2020",
        family="density", has_map=False,
    ),
    "ae": MethodEntry(
        "blemish.methods.ae:AE", "clean",
        "an auto-encoder of good images cannot give a defect back; compares by structure or by difference",
        "Bergmann et al., Improving Unsupervised Defect Segmentation by Applying Structural Similarity to "
        "Autoencoders, VISAPP 2019",
        family="reconstruction", cost="hours",
    ),
    "gammavae": MethodEntry(
        "blemish.methods.gammavae:GammaVAE", "clean",
        "walks from the image to one that a variational auto-encoder can make; what changed is bad",
        "Dehaene et al., Iterative Energy-Based Projection on a Normal Data Manifold, ICLR 2020",
        family="reconstruction", cost="hours", exports=False,
    ),
    "expvae": MethodEntry(
        "blemish.methods.expvae:ExpVAE", "clean",
        "where a variational auto-encoder's code is unusual, and by which places (Grad-CAM)",
        "Liu et al., Towards Visually Explaining Variational Autoencoders, CVPR 2020",
        family="reconstruction", cost="hours", exports=False,
    ),
    "ocsvm": MethodEntry(
        "blemish.methods.ocsvm:OCSVM", "clean",
        "a one-class support vector machine on a whole image's features; no map",
        "Schölkopf et al., Estimating the Support of a High-Dimensional Distribution, 2001",
        family="one class", has_map=False,
    ),
    "ganomaly": MethodEntry(
        "blemish.methods.ganomaly:GANomaly", "clean",
        "an image's code against the code of what it is decoded to; a discriminator keeps that lifelike; no map",
        "Akcay et al., GANomaly: Semi-Supervised Anomaly Detection via Adversarial Training, ACCV 2018",
        family="reconstruction", cost="minutes", has_map=False,
    ),
    "itae": MethodEntry(
        "blemish.methods.itae:ITAE", "clean",
        "puts back the colour and the way up that were erased from an image, and only good ones well",
        "Huang et al., Inverse-Transform AutoEncoder for Anomaly Detection, 2019",
        family="reconstruction", cost="hours",
    ),
    "dsebm": MethodEntry(
        "blemish.methods.dsebm:DSEBM", "clean",
        "an energy that is low where good images lie, learned by taking noise away",
        "Zhai et al., Deep Structured Energy Based Models for Anomaly Detection, ICML 2016",
        family="reconstruction", cost="minutes",
    ),
    "geotrans": MethodEntry(
        "blemish.methods.geotrans:GeoTrans", "clean",
        "tells how an image was flipped, shifted and turned, and of a bad one tells it wrongly; no map",
        "Golan and El-Yaniv, Deep Anomaly Detection Using Geometric Transformations, NeurIPS 2018",
        family="self-supervised", cost="minutes", has_map=False,
    ),
    "patchsvdd": MethodEntry(
        "blemish.methods.patchsvdd:PatchSVDD", "clean",
        "learns codes of patches from where they lie to each other, and remembers the good ones",
        "Yi and Yoon, Patch SVDD: Patch-level SVDD for Anomaly Detection and Segmentation, ACCV 2020",
        family="self-supervised", cost="hours",
    ),
    "cdd": MethodEntry(
        "blemish.methods.cdd:CDD", "contaminated",
        "students of random parts of the pile teach a global one what none of them saw go wrong",
        "Liu et al., Fence off Anomaly Interference: Cross-Domain Distillation for Fully Unsupervised Anomaly "
        "Detection, 2025",
        family="teacher and student", cost="hours",
    ),
    "softpatch": MethodEntry(
        "blemish.methods.softpatch:SoftPatch", "contaminated",
        "patchcore whose memory leaves out patches that stand off from other images' at their place",
        "Jiang et al., SoftPatch: Unsupervised Anomaly Detection with Noisy Data, NeurIPS 2022",
        family="memory",
    ),
    "meds": MethodEntry(
        "blemish.methods.meds:MeDS", "contaminated",
        "random tenths of the pile are memories: what is rare in it is in few of them",
        "MeDS, its first step, ICML 2026",
        family="memory",
    ),
    "inreach": MethodEntry(
        "blemish.methods.inreach:InReaCh", "contaminated",
        "remembers only patches that recur from image to image",
        "McIntosh and Albu, Inter-Realization Channels: Unsupervised Anomaly Detection Beyond One-Class "
        "Classification, ICCV 2023",
        family="memory", cost="minutes",
    ),
    "ckaad": MethodEntry(
        "blemish.methods.ckaad:CKAAD", "weak",
        "rd kept normal by a discriminator that a few known-bad images sharpen",
        "Fang et al., Boosting Fine-Grained Visual Anomaly Detection with Coarse-Knowledge-Aware Adversarial "
        "Learning, AAAI 2025",
        family="teacher and student", cost="hours",
    ),
    "cavga": MethodEntry(
        "blemish.methods.cavga:CAVGA", "weak",
        "an auto-encoder whose attention is taught to cover all of a good image; known-bad ones teach it more",
        "Venkataramanan et al., Attention Guided Anomaly Localization in Images, ECCV 2020",
        family="reconstruction", cost="hours",
    ),
    "aabigan": MethodEntry(
        "blemish.methods.aabigan:AABiGAN", "weak",
        "encoder and generator of small images that known-bad ones teach what not to make; no map",
        "Tian et al., Anomaly Detection by Leveraging Incomplete Anomalous Knowledge with Anomaly-Aware "
        "Bidirectional GANs, IJCAI 2022",
        family="reconstruction", cost="minutes", has_map=False,
    ),
    "deepsad": MethodEntry(
        "blemish.methods.deepsad:DeepSAD", "weak",
        "a head on frozen features: good images are drawn to one point, known-bad ones pushed away; no map",
        "Ruff et al., Deep Semi-Supervised Anomaly Detection, ICLR 2020",
        family="one class", cost="minutes", has_map=False,
    ),
    "devnet": MethodEntry(
        "blemish.methods.devnet:DevNet", "weak",
        "a head on frozen features: good scores stay near zero, known-bad ones several deviations above",
        "Pang et al., Explainable Deep Few-shot Anomaly Detection with Deviation Networks, 2021",
        family="known defects", cost="minutes",
    ),
    "dra": MethodEntry(
        "blemish.methods.dra:DRA", "weak",
        "four heads on frozen features: known, pretended, unlike reference images, not like good ones",
        "Ding et al., Catching Both Gray and Black Swans: Open-set Supervised Anomaly Detection, CVPR 2022",
        family="known defects", cost="minutes",
    ),
    "prenet": MethodEntry(
        "blemish.methods.prenet:PReNet", "weak",
        "learns from pairs of images how many of the two are bad; no map",
        "Pang et al., Deep Weakly-supervised Anomaly Detection, KDD 2023",
        family="known defects", cost="minutes", has_map=False,
    ),
}
