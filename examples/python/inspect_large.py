"""Judges one image by a model that has tiles or a region: python inspect_large.py part.onnx image.png mask.png.

The graph judges one tile. Around it a program paints over what is not judged, cuts tiles, takes the largest of their
scores, and joins their maps (pip install onnxruntime pillow).
"""

import base64
import json
import sys
import zlib

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

model, picture, mask = sys.argv[1:]
onnxruntime.set_default_logger_severity(3)  # errors alone: it warns of inputs that have defaults
session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
about = json.loads(session.get_modelmeta().custom_metadata_map["blemish"])
preparation = about["preparation"]
is_grey = session.get_inputs()[0].shape[3] == 1  # exported with --grey
photograph = ImageOps.exif_transpose(Image.open(picture))
if photograph.has_transparency_data:  # is laid over black, as Blemish does
    photograph = Image.alpha_composite(Image.new("RGBA", photograph.size, "black"), photograph.convert("RGBA"))
pixels = np.atleast_3d(np.asarray(photograph.convert("L" if is_grey else "RGB")))
size = height, width = pixels.shape[:2]

inside = np.ones(size, bool)
if roi := preparation.get("roi"):
    bits = np.frombuffer(zlib.decompress(base64.b64decode(roi["mask"])), np.uint8)
    if size != tuple(roi["size"]):
        sys.exit(f"{picture} has {width} x {height} pixels, the region of interest {roi['size'][1]} x {roi['size'][0]}")
    inside = np.unpackbits(bits, count=height * width).reshape(size).astype(bool)
    pixels = np.where(inside[..., None], pixels, np.uint8(roi["level"]))

side, overlap = preparation.get("tile") or max(size), preparation.get("overlap") or 0


def along(length):
    """Each tile's first pixel and its weights, which sum to 1 at every pixel and are small near the tile's border."""
    tile = min(side, length)
    count = 1 if tile == length else -(-(length - overlap) // (tile - overlap))
    starts = np.linspace(0, length - tile, count).round().astype(int)
    position = np.arange(tile) + 0.5
    ramp = np.minimum(np.minimum(position, tile - position), max(overlap, 1))
    total = np.zeros(length)
    for start in starts:
        total[start : start + tile] += ramp
    return [(slice(start, start + tile), (ramp / total[start : start + tile]).astype(np.float32)) for start in starts]


names, judged, map_ = [output.name for output in session.get_outputs()], [], np.zeros(size, np.float32)
for rows, down in along(height):
    for columns, across in along(width):
        if inside[rows, columns].any():
            found = dict(zip(names, session.run(None, {"image": pixels[None, rows, columns]})))
            judged.append((float(found["score"][0]), float(found["p_value"][0]), int(found["decision"][0])))
            map_[rows, columns] += down[:, None] * across * found["map"][0]
map_[~inside] = map_[inside].min()

score, p_value, decision = max(judged)[0], min(one[1] for one in judged), max(one[2] for one in judged)
print(json.dumps({"decision": ("ok", "review", "reject")[decision], "score": score, "p_value": p_value}))
Image.fromarray(map_ > about["export"]["inputs"]["pixel_threshold"]).save(mask)
