#!/usr/bin/env bash
# What only a CUDA device can show, in one call: the tests that need one, the benchmarks, the base cases.
#
#   scripts/on_gpu.sh OUT [MNIST_FOLDER]
#
# Figures go to OUT as JSON; with a folder of MNIST's IDX files the base cases are trained and judged there too.
set -euo pipefail
out=$1; data=${2:-}
mkdir -p "$out"

pytest -m gpu | tee "$out/tests.txt"
python benchmarks/generation.py --device cuda --dtypes fp32 fp16 bf16 --repeats 20 --json "$out/generation.json"
python benchmarks/training_step.py --device cuda --repeats 50 --json "$out/training_step.json"
[ -z "$data" ] || scripts/train_base_cases.sh "$data" "$out/runs"
