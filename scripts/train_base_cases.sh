#!/usr/bin/env bash
# Train the base cases from nothing, or go on where they stopped, and judge them.
#
#   scripts/train_base_cases.sh MNIST_FOLDER [RUNS] [KEY=VALUE ...]
#
# Overrides apply to every training, such as train.mixed_precision=bf16 train.workers=4.
set -euo pipefail
data=$1; runs=${2:-runs}; shift; shift || true

train() { # config, run folder, overrides
    local config=$1 out=$2; shift 2
    local resume=()
    [ -f "$out/config.yaml" ] && resume=(--resume)
    ldm train "$config" "data.path=$data" "output=$out" "$@" "${resume[@]}"
}

[ -f "$runs/judge.safetensors" ] || python scripts/train_judge.py --data "$data" --out "$runs/judge.safetensors"
train configs/mnist_toy.yaml "$runs/mnist_toy" "$@"
train configs/mnist_label.yaml "$runs/mnist_label" "$@"
train configs/mnist.yaml "$runs/mnist" "$@"
train configs/mnist_text/vae.yaml "$runs/mnist_text/vae" "$@"
train configs/mnist_text/clip.yaml "$runs/mnist_text/clip" "$@"
train configs/mnist_text/unet.yaml "$runs/mnist_text/unet" \
    "codec.path=$runs/mnist_text/vae" "condition.path=$runs/mnist_text/clip" "$@"

judge=(python scripts/judge_mnist.py --judge "$runs/judge.safetensors")
"${judge[@]}" --mode text --model "$runs/mnist_text/unet" --count 20 --json "$runs/text.json" --grid "$runs/text.png"
"${judge[@]}" --mode label --model "$runs/mnist_label" --count 100 --json "$runs/label.json" --grid "$runs/label.png"
"${judge[@]}" --mode distance --data "$data" --model "$runs/mnist_label" --conditions label --count 1000 \
    --json "$runs/distance_label.json"
"${judge[@]}" --mode distance --data "$data" --model "$runs/mnist" --count 1000 --json "$runs/distance.json"
