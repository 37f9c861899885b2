"""What users hold: one object that turns an image into a verdict, saves to one file and loads from it."""

import dataclasses
import html
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image
from torch import Tensor

from blemish.backbones.backbone import rebuild
from blemish.contract import Images, Method, Prediction
from blemish.data.images import DecodedImage, read_image
from blemish.data.loading import PreparedImages
from blemish.data.preprocessing import Preprocessing
from blemish.data.readers import find_images
from blemish.data.samples import Sample
from blemish.errors import BlemishError, CalibrationError, ConfigError, ImageError, ModelFileError, WeightsError
from blemish.inspection.calibration import Calibration, calibrate
from blemish.inspection.model_file import read_model, write_model
from blemish.inspection.outlook import PAINTED, outlook, painted_from
from blemish.inspection.overlay import Scale, fixed_scale
from blemish.inspection.regions import Region, find_regions
from blemish.inspection.verdict import Verdict, on_screen
from blemish.registry import make_config, method_class
from blemish.run import Precision, PrecisionName, PythonWarnings, Run, choose_device, choose_precision

Source = str | Path | bytes | Image | NDArray[Any]
BACKBONE = "backbone."
LEARNED_KEYS = "learned_keys"  # in the provenance: those of images that it must not be calibrated on
KEY_LETTERS = 16  # of each key: 64 bits tell images apart
BATCH, WORKERS = 8, 4

T = TypeVar("T")
Reader = Callable[[T], DecodedImage | Tensor]
OnError = Callable[[Any, ImageError], None] | None


@dataclass(frozen=True)
class Scored(Generic[T]):
    """One item of a stream: its image, None where a tensor was read; as prepared, ``3 h w``; raw score and map."""

    item: T
    image: DecodedImage | None
    prepared: Tensor
    score: float
    map: NDArray[np.float32] | None


@dataclass(frozen=True)
class Inspector:
    """A learned method with all that it needs to judge images. Thread-safe: judging changes nothing.

    Attributes:
        method: learned, in eval mode, on its device.
        name: the method's name in the registry.
        preparation: how an image becomes a tensor, and a map becomes a heat map.
        calibration: what scores mean.
        provenance: what it was learned from and by, JSON-able, without paths.
        smallest_area: regions of fewer original pixels are not reported.
    """

    method: Method
    name: str
    preparation: Preprocessing
    calibration: Calibration = field(default_factory=Calibration)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    smallest_area: float = 1

    def __call__(self, image: Source) -> Verdict:
        """Judge one image: a path, encoded bytes, a PIL image, or an array (h w or h w c, RGB, uint8 or uint16)."""
        (verdict,) = self.many([image])
        return verdict

    def many(
        self, images: str | Path | Iterable[Source], batch_size: int = BATCH, on_error: OnError = None
    ) -> Iterator[Verdict]:
        """Judge many images in order, or those of a folder or pattern, ``batch_size`` together, decoding ahead.

        Scores equal those of single calls up to the rounding of batched products (about 1e-5 relative). ``on_error`` is
        called for an image that cannot be read, which is then left out; without it the ImageError is raised.
        """
        images = find_images(images) if isinstance(images, str | Path) else images
        for scored in self.stream(images, read_image, batch_size, on_error):
            yield self._verdict(scored)

    def stream(
        self, items: Iterable[T], read: Reader[T], batch_size: int = BATCH, on_error: OnError = None
    ) -> Iterator[Scored[T]]:
        """As ``many``, of any items: each with its image, raw score and map. Takes at most two batches ahead.

        ``read``, in threads, gives an item's image, to be prepared, or a tensor ``3 h w`` that is so already.
        """
        if batch_size < 1:
            raise ConfigError(f"batch_size={batch_size}: at least 1 is needed")

        def load(item: T) -> tuple[DecodedImage | None, Tensor]:
            image = read(item)
            return (None, image) if isinstance(image, Tensor) else (image, self.preparation.prepare(image))

        remaining = iter(items)
        with ThreadPoolExecutor(WORKERS) as pool:
            batches = iter(lambda: [(item, pool.submit(load, item)) for item in islice(remaining, batch_size)], [])
            following = next(batches, [])
            while batch := following:
                following = next(batches, [])
                readable = []
                for item, future in batch:
                    try:
                        readable.append((item, *future.result()))
                    except ImageError as error:
                        if on_error is None:
                            raise
                        on_error(item, error)
                if not readable:
                    continue
                prediction = self.predict(torch.stack([prepared for *_, prepared in readable]))
                scores = prediction.score.tolist()
                maps = [None] * len(scores) if prediction.map is None else prediction.map.numpy()
                for (item, image, prepared), score, map_ in zip(readable, scores, maps):
                    yield Scored(item, image, prepared, score, map_)

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
        self, images: Images, run: Run, title: str = "scoring"
    ) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
        """Raw score and largest map value of every image; the latter None for a method without maps."""
        indices = run.progress.track(range(len(images)), title)
        scores, maxima = [], []
        for scored in self.stream(indices, lambda index: images.batch([index]).images[0]):
            scores.append(scored.score)
            maxima += [] if scored.map is None else [float(scored.map.max())]
        return np.array(scores), np.array(maxima) if maxima else None

    @cached_property
    def scale(self) -> Scale | None:
        """The one colour scale of every picture this model makes; None while there is no pixel threshold."""
        threshold, max_map_values = self.calibration.pixel_threshold, self.calibration.max_map_values
        return None if threshold is None or max_map_values is None else fixed_scale(threshold, max_map_values)

    def save(self, path: str | Path, with_backbone: bool = True) -> Path:
        """Write everything to one file, by custom ``something.blemish``, whole or not at all.

        Without the backbone's weights the file is small, and needs them on the machine that loads it, which checks
        their digest. Raises an OutputError where the folder is read-only or the disk is full.
        """
        state = self.method.state_dict()
        tensors = {f"method.{name}": t for name, t in state.items() if with_backbone or not name.startswith(BACKBONE)}
        for name, values in self.calibration.to_tensors().items():
            tensors[f"calibration.{name}"] = torch.from_numpy(values)
        description = {
            **self._recipe(),
            "with_backbone": with_backbone,
            "calibration": self.calibration.meta(),
            "smallest_area": self.smallest_area,
            "provenance": dict(self.provenance),
        }
        write_model(Path(path), tensors, description)
        return Path(path)

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

    def __repr__(self) -> str:
        """Three lines: what it is, what it learned from, what it promises."""
        size, made = " x ".join(map(str, self.preparation.input_size)), self.provenance
        return (
            f"Inspector: {self.name} on {self.method.backbone.name}, which sees {size} pixels\n"
            f"learned from {made.get('images_learned', 'unknown')} images of {made.get('data', 'a set')}, "
            f"rejects scores above {self.calibration.threshold}\n{self.promise}"
        )

    def _repr_html_(self) -> str:
        """For notebooks."""
        return f"<pre>{html.escape(repr(self))}</pre>"

    def info(self) -> dict[str, Any]:
        """What this model is, as JSON has it: method, data, promise, sizes, digests."""
        state, calibration = self.method.state_dict(), self.calibration
        facts = {
            **self._recipe(),
            "promise": self.promise,
            "threshold": calibration.threshold,
            "review_threshold": calibration.review_threshold,
            "pixel_threshold": calibration.pixel_threshold,
            "learned_numbers": sum(t.numel() for name, t in state.items() if not name.startswith(BACKBONE)),
            **{name: value for name, value in self.provenance.items() if name not in (LEARNED_KEYS, PAINTED)},
            "would_find": self.would_find,
        }
        listed: dict[str, Any] = json.loads(json.dumps(facts))  # without tuples
        return listed

    @cached_property
    def would_find(self) -> dict[str, Any]:
        """What it decides of defects painted on good images that it did not learn from; empty where none were."""
        return outlook(painted_from(self.provenance), self.calibration)

    @property
    def promise(self) -> str:
        """Both errors in plain words: the share of good parts rejected, and what it finds of painted defects."""
        words = self.calibration.sentence(self.would_find.get("of_bad", ""))
        return f"{words} {self.would_find.get('sentence', '')}".rstrip()

    def _recipe(self) -> dict[str, Any]:
        return {
            "method": self.name,
            "config": dataclasses.asdict(self.method.config),
            "backbone": self.method.backbone.spec(),
            "preparation": self.preparation.to_dict(),
        }

    def _verdict(self, scored: Scored[Source]) -> Verdict:
        image, map_, score, calibration = scored.image, scored.map, scored.score, self.calibration
        if image is None:
            raise TypeError("a verdict is of an image, not of a prepared tensor: give it as an array h w c")
        preparation, known, threshold = self.preparation, calibration.kind != "none", calibration.pixel_threshold
        if map_ is not None and not np.isfinite(map_).all():
            map_ = None  # it shows nothing; its score is no better and is rejected
        heatmap: Callable[[], Any] = cache(lambda: None if map_ is None else preparation.to_original(map_, image.size))
        regions: tuple[Region, ...] = ()
        # Resizing never exceeds the map's maximum, so a map below the threshold needs none.
        if map_ is not None and threshold is not None and float(map_.max()) > threshold:
            regions = find_regions(heatmap(), threshold, self.smallest_area)
        return Verdict(
            source=str(scored.item) if isinstance(scored.item, (str, Path)) else None,
            score=score,
            p_value=calibration.p_value(score) if known else None,
            decision=calibration.decide(score) if known else None,
            regions=regions,
            size=image.size,
            scale=self.scale,
            make_pixels=lambda: on_screen(image, preparation.white_level),
            make_heatmap=heatmap,
        )


def load(
    path: str | Path, device: str = "auto", precision: PrecisionName = "auto", weights: str | None = None
) -> Inspector:
    """The inspector in a model file.

    Args:
        path: written by ``Inspector.save``.
        device: ``auto``, ``cpu`` or ``cuda``.
        precision: ``auto``, ``fp32`` or ``bf16``.
        weights: for a file saved without its backbone: a file, or ``pretrained``, which may download them. By itself
            they are looked for on this machine alone.

    Raises:
        ModelFileError: the file is missing, damaged, no model, or from a newer version.
        WeightsError: the backbone's weights are absent or not the ones it learned with.
    """
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
        if sorted({*config.layers}) != [level.stage for level in backbone.levels]:
            raise ConfigError(f"its backbone has other stages than layers={config.layers}")
        state |= {BACKBONE + name: tensor for name, tensor in backbone.state_dict().items()}
        method = cls(backbone, preparation.input_size, config)
        method.precision = as_calibrated(cls.gains_from_bf16(backbone, config), made.precision_trained)
        method.load_fitted(state)
        arrays = {name: tensor.numpy() for name, tensor in scores.items()}
        calibration = Calibration.from_tensors(arrays, description.calibration)
        method, provenance = method.to(chosen).eval(), made.model_dump(exclude_unset=True)
        return Inspector(method, description.method, preparation, calibration, provenance, description.smallest_area)
    except (WeightsError, ModelFileError):
        raise
    except (BlemishError, LookupError, TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelFileError(f"{path} does not hold what this Blemish expects ({reason}): fit it anew") from error
