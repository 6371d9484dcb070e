#!/bin/sh
# The full table of `tweaknn compare` on CIFAR-10 stored as JPEG and a third-party ResNet-20, for bird and for the
# four worst classes: 3 seeds, every method. Run from the repository's root:
#
#   sh benchmarks/compare/cifar10.sh DATA WEIGHTS OUT
#
# DATA holds train.parquet and test.parquet, WEIGHTS is the state dict. It continues where it was interrupted.
# TAKE=50000 EPOCHS=10 SCRATCH=100 PENALTIES="1.3 2 5 10" is what a machine with a GPU should run; the defaults are what
# two shared cores afford: 5,000 training images, half to fit on and half to choose on, one epoch of fine-tuning, two from
# the beginning, one penalty.
# METHODS=a,b,c and SEEDS="0 1" run a part, ONLY=bird leaves the four worst out; COLLECT=1 only gathers. NAME=longer writes
# results to compare-cifar10-bird-longer.json.
set -e
data=$1 weights=$2 out=$3
mkdir -p "$out"
take=${TAKE:-5000}
[ -f "$out/train-$take.parquet" ] ||
    python -m benchmarks.compare.subset "$data/train.parquet" "$out/train-$take.parquet" --take "$take"
penalties=
for penalty in ${PENALTIES:-2}; do penalties="$penalties --penalty $penalty"; done
run() {
    # shellcheck disable=SC2086
    tweaknn compare --model benchmarks/networks.py:resnet20_channels_last --weights "$weights" \
        --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 \
        --train "$out/train-$take.parquet" --test "$data/test.parquet" --out "$out" \
        --epochs "${EPOCHS:-1}" --scratch-epochs "${SCRATCH:-2}" --train-batch 64 --lr 0.01 --augment flip-shift \
        $penalties --checkpoints 2 --limit 2000 --jobs "${JOBS:-0}" "$@"
}
worst="--target bird --target cat --target dog --target airplane"
if [ -z "$COLLECT" ]; then
    for seed in ${SEEDS:-0 1 2}; do
        run --target bird --seed "$seed" --seeds 1 --methods "${METHODS:-all}"
        # shellcheck disable=SC2086
        [ -n "$ONLY" ] || run $worst --seed "$seed" --seeds 1 --methods "${METHODS:-all}"
    done
fi
mkdir -p benchmarks/results
json() { echo "benchmarks/results/compare-cifar10-$1${NAME:+-$NAME}.json"; }
run --target bird --seeds 3 --methods all --collect --json "$(json bird)"
[ -n "$ONLY" ] || {
    # shellcheck disable=SC2086
    run $worst --seeds 3 --methods all --collect --json "$(json worst4)"
    python -m benchmarks.compare.tidy "$(json worst4)"
}
python -m benchmarks.compare.tidy "$(json bird)"
