#!/usr/bin/env bash
# Distil the text model that comes with ldm to four steps, whole and as a LoRA, and judge both beside their teacher.
#
#   scripts/distil.sh MNIST_FOLDER [RUNS] [KEY=VALUE ...]
#
# Goes on where it stopped. Overrides apply to both trainings, such as train.workers=4.
set -euo pipefail
data=$1; runs=${2:-runs}; shift; shift || true

[ -f "$runs/judge.safetensors" ] || python scripts/train_judge.py --data "$data" --out "$runs/judge.safetensors"
for name in lcm lcm_lora; do
    ldm train "configs/mnist_text/$name.yaml" "data.path=$data" "output=$runs/$name" "$@" --resume-if-any
done

judge() { # name of the result, flags
    local name=$1; shift
    python scripts/judge_mnist.py --judge "$runs/judge.safetensors" --mode text --count 20 \
        --json "$runs/$name.json" --grid "$runs/$name.png" "$@"
}
judge teacher_50 --steps 50
judge teacher_4 --steps 4
for name in lcm lcm_lora; do
    judge "${name}_4" --model "$runs/$name" --steps 4
    judge "${name}_1" --model "$runs/$name" --steps 1
done
