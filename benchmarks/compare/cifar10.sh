#!/bin/sh
# The full table of `tweaknn compare` on CIFAR-10 stored as JPEG and a third-party ResNet-20, for bird and for the
# four worst classes: 3 seeds, every method. Run from the repository's root:
#
#   sh benchmarks/compare/cifar10.sh DATA WEIGHTS OUT
#
# DATA holds train.parquet and test.parquet, WEIGHTS is the state dict. It continues where it was interrupted.
set -e
data=$1 weights=$2 out=$3
run() {
    tweaknn compare --model benchmarks/networks.py:resnet20 --weights "$weights" \
        --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 \
        --train "$data/train.parquet" --test "$data/test.parquet" \
        --iterations 20 --penalty 2 --penalty 5 --lr 0.01 --scratch-epochs 4 --augment flip-shift --limit 3000 \
        --out "$out" "$@"
}
for seed in ${SEEDS:-0 1 2}; do
    run --target bird --seed "$seed" --seeds 1 --methods "${METHODS:-all}"
    run --target bird --target cat --target dog --target airplane --seed "$seed" --seeds 1 --methods "${METHODS:-all}"
done
mkdir -p benchmarks/results
run --target bird --seeds 3 --methods all --json benchmarks/results/compare-cifar10-bird.json
run --target bird --target cat --target dog --target airplane --seeds 3 --methods all \
    --json benchmarks/results/compare-cifar10-worst4.json
