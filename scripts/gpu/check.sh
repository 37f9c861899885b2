#!/usr/bin/env bash
# What a graphics card is asked, within nine minutes: tests, speed beside the usual loops, then figures at full length.
#   scripts/gpu/check.sh FOLDER OUT        FOLDER as scripts/gpu/pack.sh makes it: wheels/ and data/
#   BLEMISH_GPU_TRY=1 scripts/gpu/check.sh FOLDER OUT      the same on the processor, tiny: it works the first time
#   BLEMISH_GPU_PARTS="tests speed figures" BLEMISH_GPU_SECONDS=530      some of it, within other seconds
#   BLEMISH_GPU_RECIPES="recipes/claims/two-minutes.toml"      other figures
# Each part has its own limit; a part that fails stops no other. OUT gets four small files and nothing else, as they grow:
# machine.txt, parts.txt (how each part ended), log.txt (all it said) and ledger.jsonl (a row for each figure).
set -uo pipefail
cd "$(dirname "$0")/../.."
FOLDER=$(realpath "$1")
OUT=$(mkdir -p "$2" && realpath "$2")
BEGAN=$SECONDS
PYTHON=${PYTHON:-python3}
PARTS=${BLEMISH_GPU_PARTS:-tests speed figures}
SCRATCH=$(mktemp -d)
copied() { [ ! -f "$SCRATCH/results/ledger.jsonl" ] || cp "$SCRATCH/results/ledger.jsonl" "$OUT"; }
unserved() {
    [ -z "${SERVED:-}" ] || echo quit | timeout 5 nvidia-cuda-mps-control
    unset SERVED CUDA_MPS_PIPE_DIRECTORY CUDA_MPS_LOG_DIRECTORY
}
trap 'copied; unserved; kill $(jobs -p) 2>/dev/null; rm -rf "$SCRATCH"' EXIT
trap 'exit 130' INT TERM
if compgen -G "$FOLDER/wheels/*.whl" >/dev/null; then
    site=$SCRATCH/site
    $PYTHON -m pip install -q --no-index --no-deps --no-compile --target "$site" "$FOLDER"/wheels/*.whl || exit 1
fi
export PYTHONPATH="src:benchmarks${site:+:$site}${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
CARD=recipes/claims/on-a-card
if [ -n "${BLEMISH_GPU_TRY:-}" ]; then
    DEVICE=cpu JOBS=1 WORKERS=0 WHOLE=400 ONLY="RD (vector)*" TESTS="shapes and padim" RECIPES=$SCRATCH/tiny.toml
    sed -e 's/^epochs = .*/epochs = 1/' -e 's/^seeds = .*/seeds = [0]/' -e 's/^size = .*/size = 64/' \
        $CARD.toml >"$RECIPES"
    BACKBONES=test_resnet IMAGES=16 BATCH=4 CORESET="equality" SMALL="--size 64 --rounds 1"
    TINY="--backbone test_resnet --weights random"
else
    DEVICE=cuda JOBS=12 WORKERS=8 WHOLE=${BLEMISH_GPU_SECONDS:-530} ONLY="*" TESTS="not nothing" SMALL=""
    RECIPES="$CARD.toml recipes/claims/two-minutes.toml $CARD-pile.toml $CARD-weak.toml"
    RECIPES=${BLEMISH_GPU_RECIPES:-$RECIPES}
    BACKBONES="resnet18 wide_resnet50_2 efficientnet_lite0" IMAGES=512 BATCH=16 CORESET="speed memory" TINY=""
fi

part() { # seconds name command...
    local limit=$1 name=$2 left=$((WHOLE - SECONDS + BEGAN))
    shift 2
    [ "$left" -lt "$limit" ] && limit=$left
    [ "$limit" -lt 5 ] && { echo "$name: no time left" | tee -a "$OUT/parts.txt"; return; }
    local since=$SECONDS
    echo "=== $name" >>"$OUT/log.txt"
    timeout --foreground --signal=INT --kill-after=15 "$limit" "$@" >>"$OUT/log.txt" 2>&1
    echo "$name: exit status $? after $((SECONDS - since)) s" | tee -a "$OUT/parts.txt"
}

pytest() { # seconds name what...
    OMP_NUM_THREADS=1 part "$1" "$2" $PYTHON -m pytest -v -W default -p no:cacheprovider -n $WORKERS "${@:3}"
}

{ nvidia-smi 2>/dev/null || true; $PYTHON -c "import torch; print(torch.__version__, torch.version.cuda)"; } >"$OUT/machine.txt"
if [[ $PARTS == *tests* ]]; then
    pytest 90 cuda tests/gpu -k "not try"
    BLEMISH_TEST_DEVICE=$DEVICE pytest 90 contract tests/contract -m "not slow" -k "$TESTS"
fi
if [[ $PARTS == *speed* ]]; then
    for name in $BACKBONES; do
        part 45 "rd-$name" $PYTHON benchmarks/rd.py --backbone "$name" --images $IMAGES --device $DEVICE --rounds 2 $SMALL
    done
    for what in $CORESET; do
        part 40 "coreset-$what" $PYTHON benchmarks/coreset.py $what --device $DEVICE
    done
    for name in $BACKBONES; do
        part 30 "rdpp-$name" $PYTHON benchmarks/rdpp.py --backbone "$name" --device $DEVICE --batch $BATCH $SMALL
    done
    set -- "$FOLDER"/data/*/
    part 40 cdd $PYTHON benchmarks/cdd.py "$1" --device $DEVICE --epochs 2 --rounds 1 --size 64 $TINY
    part 70 latency $PYTHON benchmarks/latency.py "$1" --device $DEVICE --images 10 --rounds 1 $TINY
fi
# Kept features and checkpoints take gigabytes: the bench works elsewhere, and its rows are copied as they come.
while sleep 5 && kill -0 $$ 2>/dev/null; do copied; done >/dev/null 2>&1 &
# Several processes at once take turns on a card by slices of time, unless this server lets their kernels overlap.
if [ "$DEVICE" = cuda ] && command -v nvidia-cuda-mps-control >/dev/null; then
    export CUDA_MPS_PIPE_DIRECTORY=$SCRATCH/mps CUDA_MPS_LOG_DIRECTORY=$SCRATCH/mps
    mkdir "$SCRATCH/mps" && nvidia-cuda-mps-control -d && SERVED=yes
    timeout 25 $PYTHON -c "import torch; torch.ones(9, device='cuda').sum().item()" || unserved
fi
for recipe in $([[ $PARTS == *figures* ]] && echo "$RECIPES"); do
    part 600 "bench-$(basename "$recipe" .toml)" $PYTHON -m blemish bench "$recipe" --only "$ONLY" --data "$FOLDER/data" \
        --device $DEVICE --jobs $JOBS --results "$SCRATCH/results" --reports "$SCRATCH/reports"
done
cat "$OUT/parts.txt"
