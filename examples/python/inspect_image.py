"""Judges one image: python inspect_image.py part.onnx image.png mask.png (pip install onnxruntime pillow)."""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

model, picture, mask = sys.argv[1:]
onnxruntime.set_default_logger_severity(3)  # errors alone: it warns of inputs that have defaults
session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
is_grey = session.get_inputs()[0].shape[3] == 1  # exported with --grey
photograph = ImageOps.exif_transpose(Image.open(picture))
if photograph.has_transparency_data:  # is laid over black, as Blemish does
    photograph = Image.alpha_composite(Image.new("RGBA", photograph.size, "black"), photograph.convert("RGBA"))
pixels = np.atleast_3d(np.asarray(photograph.convert("L" if is_grey else "RGB")))
found = dict(zip((output.name for output in session.get_outputs()), session.run(None, {"image": pixels[None]})))
decision = ("ok", "review", "reject")[found["decision"][0]]
print(json.dumps({"decision": decision, "score": float(found["score"][0]), "p_value": float(found["p_value"][0])}))
if "mask" in found:
    Image.fromarray(found["mask"][0]).save(mask)
