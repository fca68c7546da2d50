#!/usr/bin/env bash
# What only a CUDA device can show, in one call: the tests that need one, the benchmarks, comparisons, four-step models, base cases.
#
#   scripts/on_gpu.sh OUT [MNIST_FOLDER] [TRAIN_TEXT_TO_IMAGE.PY]
#
# Figures go to OUT as JSON. With a folder of MNIST's IDX files the base cases and the four-step models are trained and
# judged there too; with diffusers' script, fine-tuning Stable Diffusion 1.5 (random weights) is timed beside it.
set -euo pipefail
out=$1; data=${2:-}; script=${3:-}
mkdir -p "$out"

pytest -m gpu | tee "$out/tests.txt"
python benchmarks/generation.py --device cuda --dtypes fp32 fp16 bf16 --repeats 20 --json "$out/generation.json"
python benchmarks/training_step.py --device cuda --repeats 50 --json "$out/training_step.json"
python benchmarks/data_wait.py --size sd15 --batch-size 8 --steps 40 --json "$out/data_wait.json"
[ -z "$script" ] || python benchmarks/finetune.py --script "$script" --size sd15 --batch-size 16 --steps 30 --warm-up 5 \
    --json "$out/finetune.json"
for name in mnist side64 paper families; do
    ldm compare "configs/compare/$name.yaml" output="$out/compare_$name"
done
ldm compare configs/compare/paper.yaml side=512 output="$out/compare_paper_512"
[ -z "$data" ] || {
    scripts/distil.sh "$data" "$out/distilled"
    scripts/train_base_cases.sh "$data" "$out/runs"
}
