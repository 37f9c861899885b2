"""What fit gives and a program holds: one object that turns an image into a verdict, saves to one file and loads."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
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
from blemish.data.preprocessing import Preprocessing
from blemish.data.readers import find_images
from blemish.data.samples import Sample
from blemish.errors import BlemishError, CalibrationError, ConfigError, ModelFileError, WeightsError
from blemish.inspection.calibration import Calibration, calibrate
from blemish.inspection.judge import LEARNED_KEYS, Judge, Map
from blemish.inspection.model_file import read_model, write_model
from blemish.registry import make_config, method_class
from blemish.run import Precision, PrecisionName, PythonWarnings, Run, choose_device, choose_precision

BACKBONE = "backbone."
KEY_LETTERS = 16  # of each key: 64 bits tell images apart


@dataclass(frozen=True, repr=False)
class Inspector(Judge):
    """A learned method with all that it needs to judge images. Thread-safe: judging changes nothing.

    Attributes:
        method: learned, in eval mode, on its device.
        name: the method's name in the registry.
        preparation: how an image becomes a tensor, and a map becomes a heat map.
        calibration: what scores mean.
        provenance: what it was learned from and by, JSON-able, without paths.
        smallest_area: regions of fewer original pixels are not reported.
        pixel: millimetres of the part that a pixel is wide; None where nobody said.
    """

    method: Method
    name: str
    preparation: Preprocessing
    calibration: Calibration = field(default_factory=Calibration)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    smallest_area: float = 1
    pixel: float | None = None

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
        indices = run.progress.track(range(len(images)), title)
        scores, maxima = [], []
        for scored in self.stream(indices, images.to_judge):
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
        """This inspector with a threshold from good images: files, folders or patterns, each a part unless a copy.

        Raises:
            DataError: there is no image.
            CalibrationError: they are too few for ``false_reject``, or it has learned from some of them.
        """
        run, samples = run or Run(), [Sample(path, "normal") for path in dict.fromkeys(find_images(good))]
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
        distinct = sorted({key: index for index, key in enumerate(images.keys)}.values())
        if copies := len(images) - len(distinct):
            run.progress.note(f"warning: {copies} of the images are copies of others: equal images count as one part")
        scores, maxima = self.scores(images.subset(distinct), run, "calibrating")
        calibration = calibrate("holdout", scores, max_map_values=maxima, false_reject=false_reject, review=review)
        return dataclasses.replace(self, calibration=calibration)

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
        preparation = Preprocessing.from_dict(description.preparation.model_dump())
        cls = method_class(description.method)
        config = make_config(cls, description.config)
        if sorted({*getattr(config, "layers", ())}) != [level.stage for level in backbone.levels]:
            raise ConfigError("its backbone has other stages than its options name")
        state |= {BACKBONE + name: tensor for name, tensor in backbone.state_dict().items()}
        method = cls(backbone, preparation.input_size, config)
        method.precision = as_calibrated(cls.gains_from_bf16(backbone, config), made.precision_trained)
        method.load_fitted(state)
        arrays = {name: tensor.numpy() for name, tensor in scores.items()}
        calibration = Calibration.from_tensors(arrays, description.calibration)
        method, provenance = method.to(chosen).eval(), made.model_dump(exclude_unset=True)
        area, pixel = description.smallest_area, description.pixel
        return Inspector(method, description.method, preparation, calibration, provenance, area, pixel)
    except (WeightsError, ModelFileError):
        raise
    except (BlemishError, LookupError, TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelFileError(f"{path} does not hold what this Blemish expects ({reason}): fit it anew") from error
