#!/usr/bin/env bash
# Train the starter model from nothing, or go on where it stopped: autoencoder, text encoder, U-Net, distillation, judge.
#
#   scripts/train_starter.sh DATA [RUNS] [STAGE ...] [KEY=VALUE ...]
#
# DATA is the folder that `ldm data prepare starter --out DATA` writes. STAGE is one or more of vae, clip, unet, lcm, judge
# and marks; all of them where none is named. Overrides apply to every training, such as train.workers=4. CONFIGS names
# another set of configurations: CONFIGS=configs/starter/512 scripts/train_starter.sh DATA_512 runs/starter_512
#
# Each stage keeps its log in RUNS/STAGE.log, its losses and sheets of pictures in RUNS/STAGE, and leaves a model there. All
# run at the lowest priority; where shells have groups of their own (autogroup of Linux), nice alone does not lower it.
set -euo pipefail
data=$1; runs=${2:-runs/starter}; shift; shift || true
configs=${CONFIGS:-configs/starter}
stages=(); overrides=()
for word in "$@"; do
    if [[ $word == *=* ]]; then overrides+=("$word"); else stages+=("$word"); fi
done
[ ${#stages[@]} -gt 0 ] || stages=(vae clip unet lcm judge marks)
mkdir -p "$runs"
renice -n 19 $$ > /dev/null
[ -w /proc/self/autogroup ] && echo 19 > /proc/self/autogroup

train() { # stage, overrides of its own
    local stage=$1; shift
    ldm train "$configs/$stage.yaml" "output=$runs/$stage" "data.path=$data" "$@" \
        ${overrides[@]+"${overrides[@]}"} --resume-if-any 2>&1 | tee -a "$runs/$stage.log"
}

for stage in "${stages[@]}"; do
    case $stage in
        vae | clip) train "$stage" ;;
        unet) train unet "codec.path=$runs/vae" "condition.path=$runs/clip" ;;
        lcm) train lcm "teacher=$runs/unet" ;;
        judge)
            [ -f "$runs/judge.safetensors" ] ||
                python scripts/train_starter_judge.py --data "$data" --out "$runs/judge.safetensors" --json "$runs/judge.json"
            ;;
        marks)
            for model in unet lcm; do
                python scripts/judge_starter.py --data "$data" --judge "$runs/judge.safetensors" --model "$runs/$model" \
                    --json "$runs/marks_$model.json" --sheets "$runs/marks_$model"
            done
            ;;
        *) echo "unknown stage $stage: vae, clip, unet, lcm, judge or marks" >&2; exit 2 ;;
    esac
done
