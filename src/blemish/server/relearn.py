"""``python -m blemish.server.relearn JOB.json``: learn again in a process of its own, then compare old and new.

It learns from the images that the model learned from and from what people said of verdicts since: good ones count as
normal, bad ones as anomalous. Every third part said to be good, chosen by its own digest and so always the same ones,
is learned by no model: on those old and new are compared.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from blemish.errors import BlemishError, CalibrationError
from blemish.run import written_atomically

HELD_OUT = 3  # one part in so many
JOB, RESULT, MODEL = "job.json", "result.json", "new.blemish"


def is_held_out(part: str) -> bool:
    """By its name alone: a part that one model did not learn from, none of its successors does."""
    return hashlib.sha256(part.encode()).digest()[0] % HELD_OUT == 0


def relearn(job: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Write the new model into ``folder``; what it learned from, and how its verdicts differ."""
    from blemish.backbones.backbone import rebuild
    from blemish.data.readers import read_training
    from blemish.data.samples import Sample, TrainingSet
    from blemish.inspection.load import load
    from blemish.registry import DEFAULT_METHOD, method_entry
    from blemish.run import Lines, Run
    from blemish.training.fit import fit
    from blemish.training.setup import FitSettings

    old = load(job["model"], threads=job["threads"])
    training = read_training(Path(job["training"]))
    if training.regime == "clean" and old.provenance.get("regime") == "contaminated":
        training = read_training(Path(job["training"]), unlabelled=True)
    rebuild(old.info()["backbone"])  # weights of a file are not here: with others it would be no comparison
    samples, held = list(training.samples), dict[str, str]()
    for one in job["said"]:
        if one["said"] == "good" and is_held_out(one["part"]):
            held[one["path"]] = one["part"]
            continue
        label: Literal["normal", "anomalous"] = "normal" if one["said"] == "good" else "anomalous"
        samples.append(Sample(Path(one["path"]), label, kind=one["kind"] or "", group=one["part"]))
    learned = TrainingSet(training.name, None, tuple(samples), training.notes)
    run = Run(seed=old.provenance.get("seed", 0), progress=Lines())
    settings = FitSettings(**settings_of(old.info()), pixel=old.pixel)
    if learned.regime == "weak" and method_entry(old.name).regime == "contaminated":  # it takes no known-bad ones
        settings = dataclasses.replace(settings, method=DEFAULT_METHOD["weak"], options={})
    if old.preparation.roi is not None:
        Image.fromarray(old.preparation.roi.mask).save(folder / "roi.png")
        settings = dataclasses.replace(settings, roi=folder / "roi.png")
    now = old.calibration
    try:
        new = fit(learned, dataclasses.replace(settings, false_reject=now.rate, review=now.review), run)
    except CalibrationError:  # the parts, used otherwise, do not support the rate of before
        new = fit(learned, settings, run)
    new.save(folder / MODEL)
    rejected = {}
    for word, judge in (("old", old), ("new", new)):
        found = judge.many([*held], on_error=_leave_out)
        rejected[f"rejected_{word}"] = len({held[one.source or ""] for one in found if one.decision == "reject"})
    judged, changes = {one["path"]: one for one in reversed(job["judged"])}, []
    for verdict in new.many([*judged], on_error=_leave_out):
        one = judged[verdict.source or ""]
        if verdict.decision != one["decision"]:
            scores = {"old_score": one["score"], "new_score": verdict.as_dict()["score"]}
            changed = {"id": one["id"], "old": one["decision"], "new": verdict.decision, "said": one["said"]}
            changes.append(changed | scores)
    count = Counter(sample.label for sample in samples)
    told = {"regime": learned.regime, "training": len(training.samples), "said": len(job["said"])}
    return {
        "learned_from": {**told, **count},
        "promise": new.promise,
        "comparison": {
            "held_out": {"parts": len({*held.values()}), **rejected},
            "judged": {"compared": len(judged), "changed": len(changes)},
            "changes": changes,
        },
    }


def settings_of(info: Mapping[str, Any]) -> dict[str, Any]:
    """What ``fit`` was told when it made a model, as its keyword arguments."""
    prepared, backbone, options = info["preparation"], info["backbone"], dict(info["config"])
    epochs, steps, size = options.pop("epochs", None), options.pop("steps", None), prepared["size"]
    return {
        "method": info["method"],
        "options": options,
        "backbone": backbone["name"] if backbone["stages"] else None,  # methods that see pixels alone have none
        "weights": "pretrained" if backbone.get("seed") is None else "random",
        "size": size if isinstance(size, int) else tuple(size),
        "resize": prepared["family"],
        **{name: prepared[name] for name in ("crop", "tile") if name in prepared},
        **({"tile_overlap": prepared["overlap"]} if "tile" in prepared else {}),
        "poses": info.get("poses") or "none",
        "calibration": info.get("calibration_wanted", "auto"),
        "epochs": None if steps else epochs,  # one kind of length rules out the other
        "steps": steps,
    }


def _leave_out(_: Any, error: Exception) -> None:
    sys.stdout.write(f"left out: {error}\n")


def end_with_station() -> None:
    """End this process where the station that began it has ended, and with it its end of this process's standard input.

    The next station may learn in the same folder.
    """
    os.read(0, 1)
    os._exit(1)


def main(job: Path) -> None:
    """Do the job in a file; the result, or what went wrong in one sentence, is written beside it."""
    with contextlib.suppress(OSError, AttributeError):
        os.nice(10)  # judging goes on meanwhile, and goes first
    try:
        result = relearn(json.loads(job.read_text(encoding="utf-8")), job.parent)
    except BlemishError as error:
        result = {"error": str(error)}
    except Exception as error:
        traceback.print_exc(file=sys.stdout)
        result = {"error": f"{type(error).__name__}: {error}"}
    with written_atomically(job.parent / RESULT) as temporary:
        temporary.write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    threading.Thread(target=end_with_station, daemon=True).start()
    main(Path(sys.argv[1]))
