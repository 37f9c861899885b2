"""``fit --budget 30ms``: what is judged in so much time on this machine, from an image's file to its verdict.

From the settings wanted down, candidates are measured as they will judge: their memory is as full as it will be. Where
torch is too slow, a file exported from them is tried with each engine, in float32 and then in what is cheaper and pays.
What the first that fits costs in quality is measured too, by painted defects on good images that were held out.
"""

import contextlib
import dataclasses
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from blemish.backbones.networks import choose_levels
from blemish.data.images import read_image
from blemish.data.poses import copies
from blemish.data.samples import Sample, TrainingSet
from blemish.errors import BlemishError, ConfigError, OutputError
from blemish.inspection.inspector import Inspector
from blemish.registry import PROFILES
from blemish.run import Run, Silent
from blemish.training.profiles import begin_trial, has_profiles, with_profile
from blemish.training.setup import FitSettings, build_learner, load_images, method_config

WARM_UP, MEASURED, TOLD, LOOKED = 3, 20, 5, 4  # verdicts before, those measured, and enough if all are slow; images
SMALLEST = 500  # patches in a memory
JUDGED = 16  # good images, on which a cheaper precision is tried
ENGINES_GAIN, CHEAPER_GAINS = 4, 2  # times as fast: more was never seen, so what would need more is not tried
PRECISIONS: tuple[Literal["fp32", "bf16", "int8"], ...] = ("fp32", "bf16", "int8")  # of exported files, as they lose
SHARES = ((1, 1), (1, 1 / 4), (3 / 4, 1 / 4), (1 / 2, 1 / 8))  # of a side, and of the memory


@dataclass(frozen=True)
class Candidate:
    """Settings, and milliseconds from file to verdict: median, and what 19 of 20 verdicts do not exceed.

    By another ``engine`` than torch they are of an exported file in that ``precision``; ``cost`` says what that costs.
    """

    settings: FitSettings
    p50: float
    p95: float
    engine: str = "torch"
    precision: str = "auto"
    cost: str = ""

    def __str__(self) -> str:
        """In words."""
        size, memory = self.settings.size, self.settings.options["memory"]
        sides = f"{size}" if isinstance(size, int) else " x ".join(map(str, reversed(size or ())))
        by = "" if self.engine == "torch" else f", exported in {self.precision} and judged by {self.engine}"
        return f"{self.settings.backbone} at {sides}, memory {memory:,}{by}: {self.p95:.0f} ms"


def within_budget(
    training: TrainingSet, wanted: FitSettings, asked: FitSettings, method: str, run: Run
) -> tuple[FitSettings, dict[str, Any]]:
    """The first of ``wanted``, which a profile filled in, and smaller ones that keeps to ``asked.budget``; and by what.

    What was asked for by name stays as it is. Says what was measured and what it costs; a ConfigError names the fastest
    where nothing keeps to the budget.
    """
    import torch

    if not has_profiles(method):
        raise ConfigError(f"a budget is kept by smaller sizes and memories, as profiles have, and {method} has none")
    if not {"layers", "memory"} <= wanted.options.keys():
        raise ConfigError("a budget is kept by smaller sizes and memories than a profile's: give --profile as well")
    if asked.options.get("fraction") is not None:
        raise ConfigError("a budget is kept by smaller memories, and fraction fixes theirs: set memory in its place")
    candidates, quiet = list[Candidate](), dataclasses.replace(run, progress=Silent())
    smaller = _smaller(training, wanted, asked, method, quiet)
    for settings in run.progress.track(smaller, "measuring what keeps to the budget"):
        candidates.append(_measured(training, settings, method, quiet))
        if candidates[-1].p95 <= (asked.budget or 0):
            break
    else:
        fastest = min(candidates, key=lambda candidate: candidate.p95)
        engines = "" if find_spec("onnxscript") else ", or pip install 'blemish[export]', whose engines are faster"
        if fastest.engine == "torch" and fastest.p50 > ENGINES_GAIN * (asked.budget or 0):
            engines = f"; engines gain {ENGINES_GAIN} times at most, and were not tried"
        raise ConfigError(
            f"nothing judges an image in {asked.budget:g} ms here: the fastest is {fastest} ({torch.get_num_threads()} "
            f"threads, file to verdict, 19 of 20 images). Give more time, smaller images or more --threads{engines}"
        )
    first, chosen = candidates[0], candidates[-1]
    run.progress.note(
        f"budget: {chosen} from file to verdict (19 of 20 images; half take {chosen.p50:.0f} ms; "
        f"{torch.get_num_threads()} threads, now, on this machine)"
    )
    if chosen.engine != "torch":
        run.progress.note(
            "budget: the model itself takes longer: `blemish export MODEL -o FILE.onnx --check GOOD_IMAGES --budget "
            f"{asked.budget:g}ms` writes what keeps to it{f'. {chosen.cost}' * bool(chosen.cost)}"
        )
    if chosen.settings != first.settings:
        cost = "too few good parts to tell what that costs"
        trials = [begin_trial(method, training, candidate.settings, quiet)[0] for candidate in (first, chosen)]
        if all(trials):
            usual, faster = (trial.stand_out(wanted.poses or "none", quiet) for trial in trials if trial)
            what = "painted defects" if trials[0] and trials[0].known_bad is None else "known-bad images"
            cost = f"{what} stand {usual:.2f} deviations above good images that were held out, with it {faster:.2f}"
        run.progress.note(f"budget: without it {first}; {cost}")
    facts = {"asked": asked.budget, "p95": chosen.p95, "engine": chosen.engine, "precision": chosen.precision}
    settings = chosen.settings
    if chosen.engine != "torch" and asked.precision == "auto":
        settings = dataclasses.replace(settings, precision="fp32")  # as files compute, so their thresholds
    return settings, {"budget": facts}


def _smaller(
    training: TrainingSet, wanted: FitSettings, asked: FitSettings, method: str, quiet: Run
) -> list[FitSettings]:
    """``wanted`` and what is faster, without what would change something that was asked for."""
    starts, cells = [wanted], dataclasses.replace(PROFILES["fast"], options={})
    if asked.backbone is None and "layers" not in asked.options and wanted.backbone != PROFILES["fast"].backbone:
        profile = PROFILES["fast"] if wanted.poses == "none" else PROFILES["fast"].turned or PROFILES["fast"]
        other = dataclasses.replace(asked, profile="fast", poses=wanted.poses)
        starts.append(with_profile(profile, training, other, quiet, method))
    found: dict[Any, FitSettings] = {}
    for start in starts:
        for side, share in SHARES:
            size, options = start.size, dict(start.options)
            if not asked.size and asked.smallest_defect is None and isinstance(size, tuple):
                size = round(side * size[0]), round(side * size[1])
            if "memory" not in asked.options:
                options["memory"] = max(SMALLEST, round(share * options["memory"]))
            settings = dataclasses.replace(start, options=options, size=size)
            settings = with_profile(cells, training, settings, quiet, method)  # a size of whole cells
            kept = min(options["memory"], _cells(settings) * len(training.normal))  # of few patches all are
            found.setdefault((settings.backbone, settings.size, kept), settings)
    return [*found.values()]


def _cells(settings: FitSettings) -> int:
    """Patches that an image gives to the memory, in all its poses."""
    height, width = settings.size if isinstance(settings.size, tuple) else (settings.size or 0,) * 2
    stride = choose_levels(settings.backbone or "", settings.options["layers"])[0].stride
    return max(1, (height // stride) * (width // stride) * copies(settings.poses or "none"))


def _measured(training: TrainingSet, settings: FitSettings, method: str, quiet: Run) -> Candidate:
    """From file to verdict, one image at a time, of a model whose memory is as full as it will be."""
    enough = max(1, settings.options["memory"] // _cells(settings))
    images = load_images(dataclasses.replace(training, samples=training.normal[:enough]), settings, quiet)
    learner, _ = build_learner(method, method_config(method, settings), images, training.regime, settings, quiet)
    inspector = learner.learn(range(len(images[0])), quiet)
    milliseconds: list[float] = []
    for number, sample in enumerate(islice(cycle(images[0].samples[:LOOKED]), WARM_UP + MEASURED)):
        start = time.perf_counter()
        inspector(sample.path)
        milliseconds += [1000 * (time.perf_counter() - start)] * (number >= WARM_UP)
        if len(milliseconds) == TOLD and min(milliseconds) > (settings.budget or math.inf):
            break  # not one of them kept to it
    p50, p95 = np.quantile(milliseconds, (0.5, 0.95)).tolist()
    candidate, most = Candidate(settings, p50, p95), settings.budget or math.inf
    if most < p95 and p50 <= ENGINES_GAIN * most:
        paths = [sample.path for sample in images[0].samples[:LOOKED]]
        candidate = _exported(inspector, paths, training.normal[enough:], candidate, most)
    return candidate


def _exported(
    inspector: Inspector, paths: Sequence[Path], unseen: Sequence[Sample], by_torch: Candidate, most: float
) -> Candidate:
    """The first precision of an exported file in which an engine keeps to ``most`` milliseconds, else what is fastest.

    ``paths`` are judged in turns; a cheaper precision is compared on good images ``unseen`` by the model. What cannot
    be exported or tried here is left out: torch's time stands for it.
    """
    import torch

    from blemish.deploy.export import described_graph, save
    from blemish.deploy.precision import convert, times

    fastest, threads = by_torch, torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(BlemishError, OSError):
        exported, cheaper = Path(folder) / "fp32.onnx", Path(folder) / "cheaper.onnx"
        save(*described_graph(inspector), exported, inspector.promise)
        for precision in PRECISIONS:
            file, cost = exported, ""
            if precision != "fp32":
                try:
                    images = {str(sample.path): read_image(sample.path) for sample in unseen[:JUDGED]}
                    file, cost = cheaper, str(convert(exported, cheaper, precision, images, threads))
                except (ConfigError, OutputError):  # it cannot be tried, or does not pay here
                    continue
            engine, taken = next(iter(times(file, paths, threads).items()))
            if taken["p95"] < fastest.p95:
                fastest = Candidate(by_torch.settings, taken["p50"], taken["p95"], engine, precision, cost)
            if cost or fastest.p95 <= most or fastest.p50 > CHEAPER_GAINS * most:
                break  # int8 gains less than bf16 where the processor has units for that
    return fastest
