"""What users hold: one object that turns an image into a verdict, saves to one file and loads from it."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image
from torch import Tensor

from blemish.backbones.backbone import rebuild
from blemish.contract import Images, Method, Prediction
from blemish.data.images import DecodedImage, read_image
from blemish.data.preprocessing import Preprocessing
from blemish.errors import ImageError, ModelFileError
from blemish.inspection.calibration import Calibration, calibrate
from blemish.inspection.model_file import read_model, write_model
from blemish.inspection.overlay import Scale, fixed_scale
from blemish.inspection.regions import find_regions
from blemish.inspection.verdict import Verdict
from blemish.registry import make_config, method_class
from blemish.run import Precision, PrecisionName, Run, choose_device, choose_precision

Source = str | Path | bytes | Image | NDArray[Any]
"""What may be judged: a path, encoded bytes, a PIL image, an array ``h w`` or ``h w c`` in RGB order."""

BACKBONE = "backbone."

LEARNED_KEYS = "learned_keys"
"""Where a model's provenance keeps the keys of the images it learned from: it must not be calibrated on them."""

KEY_LETTERS = 16
"""Of each key: 64 bits tell images apart."""


@dataclass(frozen=True)
class Inspector:
    """A learned method with all that it needs to judge images. Thread-safe: judging changes nothing.

    Attributes:
        method: learned, in eval mode, on its device.
        name: the method's name in the registry.
        preparation: how an image becomes a tensor, and a map becomes a heat map.
        calibration: what scores mean; of kind ``none`` if they mean nothing yet.
        provenance: what it was learned from and by, JSON-able, without paths.
        smallest_area: regions of fewer original pixels are not reported.
    """

    method: Method
    name: str
    preparation: Preprocessing
    calibration: Calibration
    provenance: Mapping[str, Any]
    smallest_area: int = 1

    def __call__(self, image: Source) -> Verdict:
        """Judge one image: a path, encoded bytes, a PIL image, or an array (h w or h w c, RGB, uint8 or uint16).

        Raises:
            ImageError: the image cannot be read.
        """
        raster = read_image(image)
        prediction = self.predict(self.preparation.prepare(raster)[None])
        return self._verdict(_name(image), raster, prediction, 0)

    def many(
        self,
        images: Iterable[Source],
        batch_size: int = 8,
        on_error: Callable[[Source, ImageError], None] | None = None,
    ) -> Iterator[Verdict]:
        """Judge many images in order, decoding the next ones while the current ones are judged.

        Scores equal those of single calls up to the rounding of batched products (about 1e-5 relative).

        Args:
            images: as for a single call.
            batch_size: images judged together.
            on_error: called for an image that cannot be read, which is then left out; without it the error is raised.
        """
        with ThreadPoolExecutor(max_workers=4) as pool:
            for batch in _in_batches(pool, self._load, images, batch_size):
                readable: list[tuple[Source, DecodedImage, Tensor]] = []
                for source, future in batch:
                    try:
                        readable.append((source, *future.result()))
                    except ImageError as error:
                        if on_error is None:
                            raise
                        on_error(source, error)
                if not readable:
                    continue
                prediction = self.predict(torch.stack([tensor for _, _, tensor in readable]))
                for i, (source, raster, _) in enumerate(readable):
                    yield self._verdict(_name(source), raster, prediction, i)

    def predict(self, images: Tensor) -> Prediction:
        """Raw scores and maps of prepared images, ``b 3 h w`` in [0, 1], on the CPU."""
        device = next(self.method.parameters(), torch.empty(0)).device
        with torch.inference_mode():
            prediction = self.method(images.to(device))
        heat = None if prediction.map is None else prediction.map.float().cpu()
        return Prediction(heat, prediction.score.float().cpu())

    def scores(self, images: Images, run: Run, title: str = "scoring") -> tuple[NDArray[Any], NDArray[Any] | None]:
        """Raw score and largest map value of every image; the latter None for a method without maps."""
        scores, max_map_values = [], []
        for start in run.progress.track(range(0, len(images), 8), title):
            prediction = self.predict(images.batch(range(start, min(start + 8, len(images)))).images)
            scores.append(prediction.score.numpy())
            if prediction.map is not None:
                max_map_values.append(prediction.map.amax(dim=(1, 2)).numpy())
        return np.concatenate(scores), np.concatenate(max_map_values) if max_map_values else None

    def calibrated(
        self, images: Images, groups: Sequence[str], run: Run, false_reject: float | None = None
    ) -> Inspector:
        """The same inspector with a threshold from good images that it did not learn from; nothing is refitted.

        Raises:
            CalibrationError: the good parts are too few for the rate asked for.
        """
        scores, max_map_values = self.scores(images, run, "calibrating")
        calibration = calibrate("holdout", scores, groups, max_map_values=max_map_values, false_reject=false_reject)
        return dataclasses.replace(self, calibration=calibration)

    @cached_property
    def scale(self) -> Scale | None:
        """The one colour scale of every picture this model makes; None while there is no pixel threshold."""
        threshold, max_map_values = self.calibration.pixel_threshold, self.calibration.max_map_values
        return None if threshold is None or max_map_values is None else fixed_scale(threshold, max_map_values)

    def save(self, path: str | Path, with_backbone: bool = True) -> Path:
        """Write everything to one file, whole or not at all.

        Args:
            path: where to, by custom ``something.blemish``.
            with_backbone: leave the backbone's weights out with False; the file then needs them on the machine that
                loads it, and checks their digest.

        Raises:
            OutputError: the folder is read-only or the disk is full.
        """
        tensors = {f"method.{name}": value for name, value in self.method.state_dict().items()}
        if not with_backbone:
            tensors = {name: value for name, value in tensors.items() if not name.startswith("method." + BACKBONE)}
        for name, values in self.calibration.to_tensors().items():
            tensors[f"calibration.{name}"] = torch.from_numpy(np.asarray(values))
        description = {
            "method": self.name,
            "config": dataclasses.asdict(self.method.config),
            "backbone": self.method.backbone.spec(),
            "with_backbone": with_backbone,
            "preparation": self.preparation.to_dict(),
            "calibration": self.calibration.meta(),
            "smallest_area": self.smallest_area,
            "provenance": dict(self.provenance),
        }
        write_model(Path(path), tensors, description)
        return Path(path)

    def info(self) -> dict[str, Any]:
        """What this model is, JSON-able: method, data, promise, sizes, digests."""
        backbone = self.method.backbone.spec()
        learned = sum(v.numel() for k, v in self.method.state_dict().items() if not k.startswith(BACKBONE))
        return {
            "method": self.name,
            "config": dataclasses.asdict(self.method.config),
            "backbone": backbone,
            "preparation": self.preparation.to_dict(),
            "promise": self.calibration.sentence(),
            "threshold": self.calibration.threshold,
            "review_threshold": self.calibration.review_threshold,
            "pixel_threshold": self.calibration.pixel_threshold,
            "learned_numbers": learned,
            **{name: value for name, value in self.provenance.items() if name != LEARNED_KEYS},
        }

    def _load(self, source: Source) -> tuple[DecodedImage, Tensor]:
        raster = read_image(source)
        return raster, self.preparation.prepare(raster)

    def _verdict(self, source: str | None, raster: DecodedImage, prediction: Prediction, i: int) -> Verdict:
        heat = None if prediction.map is None else prediction.map[i]
        score, size = float(prediction.score[i]), raster.size
        known = self.calibration.kind != "none"
        threshold = self.calibration.pixel_threshold

        def heatmap() -> NDArray[np.float32] | None:
            return None if heat is None else self.preparation.to_original(heat, size)

        # Resizing never exceeds the map's maximum, so a map below the threshold needs none.
        marked = heat is not None and threshold is not None and float(heat.max()) > threshold
        full = heatmap() if marked else None
        regions = () if full is None or threshold is None else find_regions(full, threshold, self.smallest_area)
        return Verdict(
            source=source,
            score=score,
            p_value=self.calibration.p_value(score) if known else None,
            decision=self.calibration.decide(score) if known else None,
            regions=regions,
            size=size,
            scale=self.scale,
            make_pixels=lambda: on_screen(raster, self.preparation.white_level),
            make_heatmap=(lambda: full) if full is not None else heatmap,
        )


def load(path: str | Path, device: str = "auto", precision: str = "auto", weights: str | None = None) -> Inspector:
    """The inspector in a model file.

    Args:
        path: written by ``Inspector.save``.
        device: ``auto``, ``cpu`` or ``cuda``.
        precision: ``auto``, ``fp32`` or ``bf16``.
        weights: where the backbone's weights are, for a file saved without them.

    Raises:
        ModelFileError: the file is missing, damaged, no model, or from a newer version.
        WeightsError: the file holds no backbone, and the weights here are absent or not the ones it learned with.
    """
    where = choose_device(device)
    tensors, description = read_model(Path(path))
    try:
        return _assemble(tensors, description, where, precision, weights)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ModelFileError(f"{path} does not hold what this Blemish expects ({error}): fit it anew") from error


def _assemble(
    tensors: dict[str, Tensor], description: dict[str, Any], device: torch.device, precision: Any, weights: str | None
) -> Inspector:
    state = {name.removeprefix("method."): t for name, t in tensors.items() if name.startswith("method.")}
    kept = {name.removeprefix(BACKBONE): t for name, t in state.items() if name.startswith(BACKBONE)}
    backbone = rebuild(description["backbone"], kept if description["with_backbone"] else None, weights)
    provenance = description["provenance"]
    backbone.precision = as_calibrated(device, precision, backbone.dense, provenance.get("precision"))
    preparation = Preprocessing.from_dict(description["preparation"])
    cls = method_class(description["method"])
    config = make_config(cls, description["config"])
    method = cls(backbone, preparation.input_size, config)
    dense, trained = cls.gains_from_bf16(backbone, config), provenance.get("precision_trained")
    method.precision = as_calibrated(device, precision, dense, trained)
    own = {name: t for name, t in state.items() if not name.startswith(BACKBONE)}
    method.load_fitted(own | {BACKBONE + name: t for name, t in backbone.state_dict().items()})
    arrays = {n.removeprefix("calibration."): t.numpy() for n, t in tensors.items() if n.startswith("calibration.")}
    return Inspector(
        method=method.to(device).eval(),
        name=description["method"],
        preparation=preparation,
        calibration=Calibration.from_tensors(arrays, description["calibration"]),
        provenance=provenance,
        smallest_area=description["smallest_area"],
    )


def as_calibrated(device: torch.device, wanted: PrecisionName, dense: bool, calibrated: str | None) -> Precision:
    """The precision to judge in: by itself bf16 only for a model whose threshold was set in bf16.

    Args:
        device: where networks run.
        wanted: ``auto``, or a precision to insist on.
        dense: as ``choose_precision`` takes it.
        calibrated: what the model was made in; None for files that do not say, for which the processor decides.
    """
    if wanted == "auto" and calibrated == "fp32":
        return Precision(torch.float32, channels_last=True, reason="as it was calibrated")
    return choose_precision(device, wanted, dense)


def on_screen(raster: DecodedImage, full_scale: int) -> NDArray[np.uint8]:
    """Eight bits a channel: deeper images at the model's full scale."""
    if raster.bits == 8:
        return raster.pixels
    top = 1.0 if raster.bits == 32 else full_scale
    return (np.clip(raster.pixels / top, 0, 1) * 255).round().astype(np.uint8)


def _name(source: Source) -> str | None:
    return str(source) if isinstance(source, (str, Path)) else None


def _in_batches(
    pool: ThreadPoolExecutor,
    load_one: Callable[[Any], tuple[DecodedImage, Tensor]],
    sources: Iterable[Any],
    batch_size: int,
) -> Iterator[list[tuple[Any, Future[tuple[DecodedImage, Tensor]]]]]:
    """Batches of sources with their loading under way, one batch ahead."""
    ahead: deque[tuple[Any, Future[tuple[DecodedImage, Tensor]]]] = deque()
    for source in sources:
        ahead.append((source, pool.submit(load_one, source)))
        if len(ahead) == 2 * batch_size:
            yield [ahead.popleft() for _ in range(batch_size)]
    while ahead:
        yield [ahead.popleft() for _ in range(min(batch_size, len(ahead)))]
