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
        "blemish.methods.patchcore:PatchCore", "clean", family="memory",
        idea="a memory of normal patches; an image is as bad as its strangest patch",
        paper="Roth et al., Towards Total Recall in Industrial Anomaly Detection, CVPR 2022",
    ),
    "nkd": MethodEntry(
        "blemish.methods.nkd:NKD", "clean", family="teacher and student", cost="hours", version=2,
        idea="a student of the teacher's architecture agrees with it on normal images only",
        paper="the baseline of FMAM's supplement; cf. Wang et al., Student-Teacher Feature Pyramid Matching, BMVC 2021",
    ),
    "rd": MethodEntry(
        "blemish.methods.rd:RD", "clean", family="teacher and student", cost="hours",
        idea="a student decodes the teacher's features from a narrow code, and only normal ones well",
        paper="Deng and Li, Anomaly Detection via Reverse Distillation from One-Class Embedding, CVPR 2022",
    ),
    "rdpp": MethodEntry(
        "blemish.methods.rdpp:RDPP", "clean", family="teacher and student", cost="hours",
        idea="rd behind projections that learn to undo pretended defects made of noise",
        paper="Tien et al., Revisiting Reverse Distillation for Anomaly Detection, CVPR 2023",
    ),
    "supersimplenet": MethodEntry(
        "blemish.methods.supersimplenet:SuperSimpleNet", "clean", family="made-up defects", cost="minutes", version=2,
        idea="heads on frozen features learn to see noise in irregular spots, and known-bad images where there are",
        paper="Rolih et al., SuperSimpleNet: Unifying Unsupervised and Supervised Learning, ICPR 2024",
    ),
    "draem": MethodEntry(
        "blemish.methods.draem:DRAEM", "clean", family="made-up defects", cost="hours", version=2,
        idea="one network repairs made-up defects, another learns from image and repair where they were",
        paper="Zavrtanik et al., DRAEM: A Discriminatively Trained Reconstruction Embedding, ICCV 2021",
    ),
    "destseg": MethodEntry(
        "blemish.methods.destseg:DeSTSeg", "clean", family="made-up defects", cost="hours",
        idea="a student gives clean features of spoiled images; a network learns which disagreements are defects",
        paper="Zhang et al., DeSTSeg: Segmentation Guided Denoising Student-Teacher, CVPR 2023",
    ),
    "fmam": MethodEntry(
        "blemish.methods.fmam:FMAM", "clean", family="teacher and student", cost="hours",
        idea="rd or nkd with a learned mapping on the student's features (its inside is our reading)",
        paper="the supplement on FMAM; neither its main text nor code was found",
    ),
    "stfpm": MethodEntry(
        "blemish.methods.stfpm:STFPM", "clean", family="teacher and student", cost="minutes", version=2,
        idea="a student of the teacher's architecture; a place is bad where they differ at every level",
        paper="Wang et al., Student-Teacher Feature Pyramid Matching for Anomaly Detection, BMVC 2021",
    ),
    "cfa": MethodEntry(
        "blemish.methods.cfa:CFA", "clean", family="memory", cost="minutes",
        idea="a layer learns to draw good features to the centres of spheres; bad ones lie far from all",
        paper="Lee et al., CFA: Coupled-Hypersphere-Based Feature Adaptation, IEEE Access 2022",
    ),
    "recontrast": MethodEntry(
        "blemish.methods.recontrast:ReContrast", "clean", family="teacher and student", cost="hours",
        idea="rd whose encoder learns beside a frozen copy: a decoder gives each one's features from the other's",
        paper="Guo et al., ReContrast: Domain-Specific Anomaly Detection via Contrastive Reconstruction, NeurIPS 2023",
    ),
    "urd": MethodEntry(
        "blemish.methods.urd:URD", "clean", family="teacher and student", cost="hours",
        idea="rd whose teacher learns to see made-up defects, and whose student is helped with detail",
        paper="Liu et al., Unlocking the Potential of Reverse Distillation for Anomaly Detection, AAAI 2025",
    ),
    "padim": MethodEntry(
        "blemish.methods.padim:PaDiM", "clean", family="density",
        idea="a Gaussian of good features at every place of the image, for parts that lie alike",
        paper="Defard et al., PaDiM: a Patch Distribution Modeling Framework, ICPR workshops 2021",
    ),
    "spade": MethodEntry(
        "blemish.methods.spade:SPADE", "clean", family="memory",
        idea="finds the good images most like this one, and in them the place most like each place",
        paper="Cohen and Hoshen, Sub-Image Anomaly Detection with Deep Pyramid Correspondences, 2020",
    ),
    "students": MethodEntry(
        "blemish.methods.students:Students", "clean", family="teacher and student", cost="hours",
        idea="students learn to describe patches as a teacher does; bad is where they miss it, or each other",
        paper="Bergmann et al., Uninformed Students: Student-Teacher Anomaly Detection, CVPR 2020",
    ),
    "ensemble": MethodEntry(
        "blemish.methods.patchcore:PatchCoreEnsemble", "clean", family="memory",
        idea="patchcore by several backbones, brought to one scale and averaged",
        paper="Roth et al., Towards Total Recall in Industrial Anomaly Detection, CVPR 2022, supplement",
    ),
    "subspacead": MethodEntry(
        "blemish.methods.subspacead:SubspaceAD", "clean", family="density",
        idea="principal components of good patches; a patch is as bad as what they leave of it",
        paper="SubspaceAD: Training-Free Few-Shot Anomaly Detection via Subspace Modeling, CVPR 2026",
    ),
    "fastflow": MethodEntry(
        "blemish.methods.fastflow:FastFlow", "clean", family="flow", cost="minutes",
        idea="a normalising flow over each feature map; a place is bad where its features are unlikely",
        paper="Yu et al., FastFlow: Unsupervised Anomaly Detection and Localization via 2D Normalizing Flows, 2021",
    ),
    "csflow": MethodEntry(
        "blemish.methods.csflow:CSFlow", "clean", family="flow", cost="hours",
        idea="one normalising flow over three sizes of the image that exchange what they see",
        paper="Rudolph et al., Fully Convolutional Cross-Scale-Flows for Image-based Defect Detection, WACV 2022",
    ),
    "differnet": MethodEntry(
        "blemish.methods.differnet:DifferNet", "clean", family="flow", cost="minutes", has_map=False,
        idea="a normalising flow over a whole image's features, seen in many directions; no map",
        paper="Rudolph et al., Same Same But DifferNet: Semi-Supervised Defect Detection with Normalizing Flows, WACV "
        "2021",
    ),
    "aeflow": MethodEntry(
        "blemish.methods.aeflow:AEFlow", "clean", family="flow", cost="minutes",
        idea="an auto-encoder with a normalising flow in its middle: what is unlikely, or given back badly, is bad",
        paper="Zhao et al., AE-FLOW: Autoencoders with Normalizing Flows for Medical Images Anomaly Detection, ICLR "
        "2023",
    ),
    "mahalanobis": MethodEntry(
        "blemish.methods.mahalanobis:Mahalanobis", "clean", family="density", has_map=False,
        idea="how far a whole image's features lie from a Gaussian of good ones; no map",
        paper="Rippel et al., Modeling the Distribution of Normal Data in Pre-Trained Deep Features, ICPR 2020",
    ),
    "ae": MethodEntry(
        "blemish.methods.ae:AE", "clean", family="reconstruction", cost="hours",
        idea="an auto-encoder of good images cannot give a defect back; compares by structure or by difference",
        paper="Bergmann et al., Improving Unsupervised Defect Segmentation by Applying Structural Similarity to "
        "Autoencoders, VISAPP 2019",
    ),
    "gammavae": MethodEntry(
        "blemish.methods.gammavae:GammaVAE", "clean", family="reconstruction", cost="hours", exports=False,
        idea="walks from the image to one that a variational auto-encoder can make; what changed is bad",
        paper="Dehaene et al., Iterative Energy-Based Projection on a Normal Data Manifold, ICLR 2020",
    ),
    "expvae": MethodEntry(
        "blemish.methods.expvae:ExpVAE", "clean", family="reconstruction", cost="hours", exports=False,
        idea="where a variational auto-encoder's code is unusual, and by which places (Grad-CAM)",
        paper="Liu et al., Towards Visually Explaining Variational Autoencoders, CVPR 2020",
    ),
    "ocsvm": MethodEntry(
        "blemish.methods.ocsvm:OCSVM", "clean", family="one class", has_map=False,
        idea="a one-class support vector machine on a whole image's features; no map",
        paper="Schölkopf et al., Estimating the Support of a High-Dimensional Distribution, 2001",
    ),
    "ganomaly": MethodEntry(
        "blemish.methods.ganomaly:GANomaly", "clean", family="reconstruction", cost="minutes", has_map=False,
        idea="an image's code against the code of what it is decoded to; a discriminator keeps that lifelike; no map",
        paper="Akcay et al., GANomaly: Semi-Supervised Anomaly Detection via Adversarial Training, ACCV 2018",
    ),
    "itae": MethodEntry(
        "blemish.methods.itae:ITAE", "clean", family="reconstruction", cost="hours",
        idea="puts back the colour and the way up that were erased from an image, and only good ones well",
        paper="Huang et al., Inverse-Transform AutoEncoder for Anomaly Detection, 2019",
    ),
    "dsebm": MethodEntry(
        "blemish.methods.dsebm:DSEBM", "clean", family="reconstruction", cost="minutes",
        idea="an energy that is low where good images lie, learned by taking noise away",
        paper="Zhai et al., Deep Structured Energy Based Models for Anomaly Detection, ICML 2016",
    ),
    "geotrans": MethodEntry(
        "blemish.methods.geotrans:GeoTrans", "clean", family="self-supervised", cost="minutes", has_map=False,
        idea="tells how an image was flipped, shifted and turned, and of a bad one tells it wrongly; no map",
        paper="Golan and El-Yaniv, Deep Anomaly Detection Using Geometric Transformations, NeurIPS 2018",
    ),
    "patchsvdd": MethodEntry(
        "blemish.methods.patchsvdd:PatchSVDD", "clean", family="self-supervised", cost="hours",
        idea="learns codes of patches from where they lie to each other, and remembers the good ones",
        paper="Yi and Yoon, Patch SVDD: Patch-level SVDD for Anomaly Detection and Segmentation, ACCV 2020",
    ),
    "cdd": MethodEntry(
        "blemish.methods.cdd:CDD", "contaminated", family="teacher and student", cost="hours",
        idea="students of random parts of the pile teach a global one what none of them saw go wrong",
        paper="Liu et al., Fence off Anomaly Interference: Cross-Domain Distillation for Fully Unsupervised Anomaly "
        "Detection, 2025",
    ),
    "softpatch": MethodEntry(
        "blemish.methods.softpatch:SoftPatch", "contaminated", family="memory",
        idea="patchcore whose memory leaves out patches that stand off from other images' at their place",
        paper="Jiang et al., SoftPatch: Unsupervised Anomaly Detection with Noisy Data, NeurIPS 2022",
    ),
    "meds": MethodEntry(
        "blemish.methods.meds:MeDS", "contaminated", family="memory",
        idea="random tenths of the pile are memories: what is rare in it is in few of them",
        paper="MeDS, its first step, ICML 2026",
    ),
    "inreach": MethodEntry(
        "blemish.methods.inreach:InReaCh", "contaminated", family="memory", cost="minutes",
        idea="remembers only patches that recur from image to image",
        paper="McIntosh and Albu, Inter-Realization Channels: Unsupervised Anomaly Detection Beyond One-Class "
        "Classification, ICCV 2023",
    ),
    "ckaad": MethodEntry(
        "blemish.methods.ckaad:CKAAD", "weak", family="teacher and student", cost="hours",
        idea="rd kept normal by a discriminator that a few known-bad images sharpen",
        paper="Fang et al., Boosting Fine-Grained Visual Anomaly Detection with Coarse-Knowledge-Aware Adversarial "
        "Learning, AAAI 2025",
    ),
    "cavga": MethodEntry(
        "blemish.methods.cavga:CAVGA", "weak", family="reconstruction", cost="hours",
        idea="an auto-encoder whose attention is taught to cover all of a good image; known-bad ones teach it more",
        paper="Venkataramanan et al., Attention Guided Anomaly Localization in Images, ECCV 2020",
    ),
    "aabigan": MethodEntry(
        "blemish.methods.aabigan:AABiGAN", "weak", family="reconstruction", cost="minutes", has_map=False,
        idea="encoder and generator of small images that known-bad ones teach what not to make; no map",
        paper="Tian et al., Anomaly Detection by Leveraging Incomplete Anomalous Knowledge with Anomaly-Aware "
        "Bidirectional GANs, IJCAI 2022",
    ),
    "deepsad": MethodEntry(
        "blemish.methods.deepsad:DeepSAD", "weak", family="one class", cost="minutes", has_map=False,
        idea="a head on frozen features: good images are drawn to one point, known-bad ones pushed away; no map",
        paper="Ruff et al., Deep Semi-Supervised Anomaly Detection, ICLR 2020",
    ),
    "devnet": MethodEntry(
        "blemish.methods.devnet:DevNet", "weak", family="known defects", cost="minutes",
        idea="a head on frozen features: good scores stay near zero, known-bad ones several deviations above",
        paper="Pang et al., Explainable Deep Few-shot Anomaly Detection with Deviation Networks, 2021",
    ),
    "dra": MethodEntry(
        "blemish.methods.dra:DRA", "weak", family="known defects", cost="minutes",
        idea="four heads on frozen features: known, pretended, unlike reference images, not like good ones",
        paper="Ding et al., Catching Both Gray and Black Swans: Open-set Supervised Anomaly Detection, CVPR 2022",
    ),
    "prenet": MethodEntry(
        "blemish.methods.prenet:PReNet", "weak", family="known defects", cost="minutes", has_map=False,
        idea="learns from pairs of images how many of the two are bad; no map",
        paper="Pang et al., Deep Weakly-supervised Anomaly Detection, KDD 2023",
    ),
}
