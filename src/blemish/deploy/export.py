"""``blemish export``: one ONNX file, written only where it has said the same of real images as the model itself."""

import importlib.metadata
import json
import math
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.fx import config as tracing
from torch.nn.functional import interpolate
from torch.overrides import TorchFunctionMode

from blemish.backbones.catalogue import BACKBONES
from blemish.data.images import DecodedImage
from blemish.deploy.graph import Deployed
from blemish.deploy.parity import Parity, check_parity
from blemish.errors import ConfigError, OutputError
from blemish.inspection.exported_file import sealed
from blemish.inspection.inspector import Inspector
from blemish.registry import method_entry
from blemish.run.files import check_writable, versions, written_atomically

OPSET = 18
LARGEST = 2**31 - 2**24  # bytes of weights: a larger graph would need a second file beside it
EXAMPLE = (2, 50, 70)  # all at least 2: 0 and 1 would be taken for constants
NEEDED = ("onnx", "onnxscript", "onnxruntime")

Pixels = Literal["uint8", "uint16"]


def export(
    inspector: Inspector,
    path: str | Path,
    pictures: Mapping[str, DecodedImage],
    *,
    pixels: Pixels | None = None,
    grey: bool = False,
    made_from: str = "",
) -> Parity:
    """Write ``inspector`` as an ONNX file; what comparing both on ``pictures`` gave. Of tiles, the graph judges one.

    Args:
        inspector: on any device and in any precision: the file computes in float32.
        path: by custom ``something.onnx``.
        pictures: by name, of several sizes, as the file will be given them.
        pixels: type of the input; None for ``uint16`` where the model knows images of more than 8 bits.
        grey: the file takes images ``n h w 1`` instead of ``n h w 3``; ``pictures`` must be grey.
        made_from: SHA-256 of the model file, for the file's own description.

    Raises:
        ConfigError: a package is missing (they are of the extra ``export``), or ``pixels`` does not fit the model.
        OutputError: the file cannot be written, has no operator for what the model does, or judges otherwise.
    """
    path = Path(path)
    check_writable(path)
    model, description = described_graph(inspector, pixels, grey, made_from)
    with written_atomically(path) as temporary:
        save(model, description, temporary, inspector.promise)
        parity = check_parity(_bare(inspector), temporary, pictures)
        description["export"]["parity"] = asdict(parity)
        save(model, description, temporary, inspector.promise)
    return parity


def described_graph(
    inspector: Inspector, pixels: Pixels | None = None, grey: bool = False, made_from: str = ""
) -> tuple[Any, dict[str, Any]]:
    """What ``export`` writes, compared with nothing yet: an ``onnx.ModelProto`` and what it says of itself."""
    for name in NEEDED:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"exporting needs the package {name}: pip install 'blemish[export]'")
    deep = inspector.preparation.white_level > 255
    pixels = pixels or ("uint16" if deep else "uint8")
    if (pixels == "uint16") != deep:
        known = f"up to {inspector.preparation.white_level}" if deep else "8 bits"
        raise ConfigError(
            f"an input of {pixels} was asked for, but the model learned from images of {known}: leave --input out"
        )
    name = inspector.name
    if not method_entry(name).exports or inspector.method.needs_gradient:
        raise ConfigError(f"{name} cannot be exported: each of its verdicts needs a gradient, which no engine computes")
    deployed = Deployed(_bare(inspector), with_white=deep).eval()
    description = describe(inspector, made_from, pixels)
    description["export"]["inputs"] = {key: value for key, value in deployed.inputs.items() if math.isfinite(value)}
    return to_onnx(deployed, pixels, channels=1 if grey else 3), description


def _bare(inspector: Inspector) -> Inspector:
    """For whole images: whoever runs the graph cuts tiles and covers what is not judged."""
    return replace(inspector, preparation=replace(inspector.preparation, tiling=None, roi=None))


def to_onnx(deployed: Deployed, pixels: Pixels, any_size: bool = True, channels: int = 3) -> Any:
    """The graph as an ``onnx.ModelProto``; an OutputError names the operator that has no counterpart."""
    import onnx

    if (size := sum(t.numel() * t.element_size() for t in deployed.state_dict().values())) > LARGEST:
        raise OutputError(
            f"the model has {size / 1e9:.1f} GB, more than the 2 GB that one ONNX file holds: fit with a smaller "
            "memory or backbone"
        )
    count, height, width = (torch.export.Dim(name) for name in ("n", "h", "w"))
    shape = {0: count, 1: height, 2: width} if any_size else {0: count}
    example = torch.zeros((*EXAMPLE, channels), dtype=getattr(torch, pixels))
    options = tuple(torch.tensor(value) for value in deployed.inputs.values())
    constants, silent = Constants(), tracing.do_not_emit_stack_traces
    tracing.do_not_emit_stack_traces = True  # to collect them takes a fifth of the time
    try:
        with torch.no_grad(), constants:
            deployed(torch.zeros_like(example), *options)
            constants.are_known = True
            shapes: tuple[Any, ...] = (shape, tuple({} for _ in options)) if options else (shape,)
            # Strict: torch.onnx would go on with a graph for the example's size alone.
            traced = torch.export.export(deployed, (example, *options), dynamic_shapes=shapes, strict=False)
        program: Any = torch.onnx.export(
            traced,
            dynamo=True,
            opset_version=OPSET,
            verbose=False,
            input_names=["image", *deployed.inputs],
            output_names=deployed.outputs,
        )
    except Exception as error:  # the exporter's own kinds, and what its parts raise
        causes = [str(error)] + [str(cause) for cause in (error.__cause__, error.__context__) if cause]
        named = re.search(r"(aten|prims|torchvision|_operator)[.:]+[\w.]+", " ".join(reversed(causes)))
        what = named[0] if named else causes[-1].splitlines()[0][:200]
        raise OutputError(
            f"this model has no ONNX form: {what} cannot be translated. Use another --backbone, or the model file"
        ) from error
    finally:
        tracing.do_not_emit_stack_traces = silent
    for node in program.model.graph.all_nodes():  # a file tells nobody where this machine keeps its code
        node.metadata_props.pop("pkg.torch.onnx.stack_trace", None)
    model = program.model_proto
    # No outputs to programs, but names by which our engines leave preparation out.
    for value in [value for value in model.graph.output if value.name in ("prepared", "input_map")]:
        model.graph.output.remove(value)
        sides: list[str | int] = ["n", *[3] * (value.name == "prepared"), *deployed.input_size]
        model.graph.value_info.append(onnx.helper.make_tensor_value_info(value.name, onnx.TensorProto.FLOAT, sides))
    for name, value in deployed.inputs.items():  # inputs that have a value need not be given
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(value, np.float32), name))
    return model


class Constants(TorchFunctionMode):
    """Antialiased resizing of what does not depend on the image, such as the positions of a ViT's patches.

    No engine is trusted with it: what is resized in a first call is kept, in order, and given back in later calls.
    Images come in batches of more than one, and of these nothing is kept.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Tensor] = []
        self.are_known, self.calls = False, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not interpolate or not kwargs.get("antialias") or args[0].shape[:1] != (1,):
            return func(*args, **kwargs)
        if not self.are_known:
            self.kept.append(func(*args, **kwargs).clone())
        self.calls += 1
        return self.kept[(self.calls - 1) % len(self.kept)]


def describe(inspector: Inspector, made_from: str, pixels: Pixels) -> dict[str, Any]:
    """What the file says of itself: the model file's description, and how it was exported."""
    entry = BACKBONES.get(inspector.method.backbone.name.partition(":")[0])
    return {
        **inspector.description(),
        "calibration_tensors": {name: v.tolist() for name, v in inspector.calibration.to_tensors().items()},
        "export": {
            "opset": OPSET,
            "versions": versions("blemish", "torch", *NEEDED),
            "sha256": made_from,
            "licence": entry.licence if entry else "unknown: see the backbone's own",
            "input": pixels,
            "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        },
    }


def save(model: Any, description: dict[str, Any], path: Path, promise: str) -> None:
    """Write the graph with its description, promise and digest."""
    import onnx

    properties = {
        "blemish": json.dumps(description, sort_keys=True),
        "method": description["method"],
        "promise": promise,
        "classes": "of decision: 0 ok, 1 review, 2 reject",
        "units": "score and map: the method's own, higher is more anomalous; p_value: share of good parts",
    }
    onnx.helper.set_model_props(model, properties)
    path.write_bytes(sealed(model.SerializeToString()))
