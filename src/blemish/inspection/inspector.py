"""What fit gives and a program holds: one object that turns an image into a verdict, saves to one file and loads."""

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from blemish.backbones.backbone import rebuild
from blemish.contract import Method, Prediction
from blemish.data.images import DecodedImage
from blemish.data.loading import PreparedImages
from blemish.data.readers import read_good
from blemish.errors import BlemishError, CalibrationError, ConfigError, ModelFileError, WeightsError
from blemish.inspection.calibration import calibrate, choose_rate, choose_review
from blemish.inspection.judge import LEARNED_KEYS, Judge, Map, described
from blemish.inspection.model_file import read_model, write_model
from blemish.registry import make_config, method_class
from blemish.run import Precision, PrecisionName, PythonWarnings, Run, choose_device, choose_precision

BACKBONE = "backbone."
KEY_LETTERS = 16  # of each key: 64 bits tell images apart


@dataclass(frozen=True, kw_only=True, repr=False)
class Inspector(Judge):
    """A learned ``method``, in eval mode on its device, with all that it needs to judge images."""

    method: Method

    def prepared(self, image: DecodedImage) -> Tensor:
        """``3 h w`` in [0, 1], as the method takes it."""
        return self.preparation.prepare(image)

    def computed(self, prepared: Sequence[Tensor]) -> Iterable[tuple[float, Map | None]]:
        """Raw score and map, at the input's size, of each."""
        prediction = self.predict(torch.stack([*prepared]))
        scores = prediction.score.tolist()
        return zip(scores, [None] * len(scores) if prediction.map is None else prediction.map.numpy())

    def predict(self, images: Tensor) -> Prediction:
        """Raw scores and maps of prepared images, ``b 3 h w`` in [0, 1], on the CPU."""
        device = next(self.method.parameters(), torch.empty(0)).device
        try:
            with torch.inference_mode():
                prediction = self.method(images.to(device))
        except (RuntimeError, IndexError) as error:
            if "memory" in str(error):
                raise MemoryError(str(error).splitlines()[0]) from error
            raise ModelFileError(f"this model cannot judge its images ({error}): fit it anew") from error
        map_ = None if prediction.map is None else prediction.map.float().cpu()
        return Prediction(map_, prediction.score.float().cpu())

    def scores(
        self, images: PreparedImages, run: Run, title: str = "scoring"
    ) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
        """Raw score and largest map value of every image; the latter None for a method without maps."""
        scores, maxima = [], []
        stream = self.stream(range(len(images)), images.to_judge)  # reads ahead: what is read is not judged yet
        for scored in run.progress.track(stream, title, len(images)):
            scores.append(scored.score)
            maxima += [] if scored.map is None else [self.preparation.highest(scored.map)]
        return np.array(scores), np.array(maxima) if maxima else None

    def save(self, path: str | Path, with_backbone: bool = True) -> Path:
        """Write everything to one file, by custom ``something.blemish``, whole or not at all.

        Without the backbone's weights the file is small, and needs them on the machine that loads it, which checks
        their digest. Raises an OutputError where the folder is read-only or the disk is full.
        """
        state = self.method.state_dict()
        tensors = {f"method.{name}": t for name, t in state.items() if with_backbone or not name.startswith(BACKBONE)}
        for name, values in self.calibration.to_tensors().items():
            tensors[f"calibration.{name}"] = torch.from_numpy(values)
        write_model(Path(path), tensors, self.description(with_backbone))
        return Path(path)

    def description(self, with_backbone: bool = True) -> dict[str, Any]:
        """What a file of this model says of it beside its tensors, JSON-able."""
        return {
            **self.recipe(),
            "with_backbone": with_backbone,
            "calibration": self.calibration.meta(),
            "smallest_area": self.smallest_area,
            "provenance": dict(self.provenance),
        }

    def calibrated(
        self,
        good: str | Path | Iterable[str | Path],
        false_reject: float | None = None,
        run: Run | None = None,
        review: float | None = None,
    ) -> Self:
        """This inspector with a threshold from good images: files, folders or patterns.

        Each image is a part, unless it is a copy or a ``manifest.csv`` in its folder, or given itself, names groups.

        Raises:
            DataError: there is no image.
            CalibrationError: they are too few for ``false_reject``, or it has learned from some of them.
        """
        run, (samples, notes) = run or Run(), read_good(good)
        for note in notes:
            run.progress.note(f"note: {note}")
        elsewhere = [folder for one in samples if (folder := one.path.parent.name) != "good"]
        if 0 < len(elsewhere) < len(samples):
            where = f"{len(elsewhere)} of {len(samples)} images lie not in a folder good but in others ({elsewhere[0]})"
            run.progress.note(f"warning: {where}: all count as good parts; give the good ones alone if these are not")
        images = PreparedImages(samples, self.preparation, progress=run.progress)
        learned = set(self.provenance.get(LEARNED_KEYS, ()))
        known = [sample.path.name for sample, key in zip(images.samples, images.keys) if key[:KEY_LETTERS] in learned]
        if known:
            raise CalibrationError(
                f"the model has learned from {len(known)} of these {len(images)} images, such as {known[0]}: a "
                "threshold from them would reject almost every new part. Give good images that it has not seen."
            )
        if copies := len(images) - len(set(images.keys)):
            run.progress.note(f"warning: {copies} of the images are copies of others: equal images count as one part")
        choose_review(review, choose_rate(false_reject, len(images)))  # what is refused is, before any work
        scores, maxima = self.scores(images, run, "calibrating")
        wanted: dict[str, Any] = {"false_reject": false_reject, "review": review, "max_map_values": maxima}
        trusted = all(sample.label == "normal" for sample in images.samples)
        calibration = calibrate("holdout", scores, images.groups, trusted=trusted, **wanted)
        used = {"precision": self.method.backbone.precision, "precision_trained": self.method.precision}
        computed = {name: kind.name for name, kind in used.items() if kind is not None}
        provenance = {**self.provenance, "stand_out": [], **computed}
        return dataclasses.replace(self, calibration=calibration, provenance=provenance)

    def facts(self) -> dict[str, Any]:
        """How many numbers it learned."""
        learned = [t.numel() for name, t in self.method.state_dict().items() if not name.startswith(BACKBONE)]
        return {"learned_numbers": sum(learned)}

    def recipe(self) -> dict[str, Any]:
        """Method and config, backbone and preparation, as the model file has them."""
        return {
            "method": self.name,
            "config": dataclasses.asdict(self.method.config),
            "backbone": self.method.backbone.spec(),
            "preparation": self.preparation.to_dict(),
            "pixel": self.pixel,
        }


def load(
    path: str | Path, device: str = "auto", precision: PrecisionName = "auto", weights: str | None = None
) -> Inspector:
    """The inspector in a file that ``Inspector.save`` wrote; ``blemish.load`` says more and takes exported ones too."""
    chosen = choose_device(device)
    choose_precision(chosen, precision)  # refuses an unknown one
    tensors, description = read_model(Path(path))
    if weights is not None and description.with_backbone:
        raise ConfigError(f"{path} holds its own backbone: leave weights out")
    state, scores, kept = (
        {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        for prefix in ("method.", "calibration.", f"method.{BACKBONE}")
    )

    def as_calibrated(dense: bool, made_in: str | None) -> Precision:
        """By itself that of the threshold, where this processor has units for it; files of old do not say."""
        wanted = "fp32" if precision == "auto" and made_in == "fp32" else precision
        found = choose_precision(chosen, wanted, dense or made_in == "bf16")
        if precision == "auto" and made_in not in (None, found.name):
            text = f"the threshold was set in {made_in}, which is slow here: scores in {found.name} may differ by "
            PythonWarnings().note(f"warning: {path}: {text}a percent; --precision {made_in} repeats them")
        return found

    try:
        backbone = rebuild(description.backbone, kept if description.with_backbone else None, weights)
        made = description.provenance
        backbone.precision = as_calibrated(backbone.dense, made.precision)
        fields = described(description, {name: tensor.numpy() for name, tensor in scores.items()})
        cls = method_class(description.method)
        config = make_config(cls, description.config)
        if sorted({*getattr(config, "layers", ())}) != [level.stage for level in backbone.levels]:
            raise ConfigError("its backbone has other stages than its options name")
        state |= {BACKBONE + name: tensor for name, tensor in backbone.state_dict().items()}
        method = cls(backbone, fields["preparation"].input_size, config)
        method.precision = as_calibrated(cls.gains_from_bf16(backbone, config), made.precision_trained)
        method.load_fitted(state)
        return Inspector(method=method.to(chosen).eval(), **fields)
    except (WeightsError, ModelFileError):
        raise
    except (BlemishError, LookupError, TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelFileError(f"{path} does not hold what this Blemish expects ({reason}): fit it anew") from error
