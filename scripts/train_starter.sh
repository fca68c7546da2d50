#!/usr/bin/env bash
# Train the starter model from nothing, or go on where it stopped: autoencoder, text encoder, U-Net, distillation, judge.
#
#   scripts/train_starter.sh DATA [RUNS] [STAGE ...] [KEY=VALUE ...]
#
# DATA is the folder that `ldm data prepare starter --out DATA` writes. STAGE is one or more of vae, clip, unet_128,
# unet_256, lcm_256, judge and marks_256, and all of them where none is named; or, on a GPU and from a folder that was
# prepared with --side 512, of unet_512, lcm_512 and marks_512. Overrides apply to every training, such as train.workers=4.
#
# Each stage keeps its log in RUNS/STAGE.log, its losses and sheets of pictures in RUNS/STAGE, and leaves a model there. All
# run at the lowest priority; where shells have groups of their own (autogroup of Linux), nice alone does not lower it.
set -euo pipefail
data=$1; runs=${2:-runs/starter}; shift; shift || true
stages=(); overrides=()
for word in "$@"; do
    if [[ $word == *=* ]]; then overrides+=("$word"); else stages+=("$word"); fi
done
[ ${#stages[@]} -gt 0 ] || stages=(vae clip unet_128 unet_256 lcm_256 judge marks_256)
mkdir -p "$runs"
renice -n 19 $$ > /dev/null
[ -w /proc/self/autogroup ] && echo 19 > /proc/self/autogroup

train() { # stage, overrides of its own
    local stage=$1; shift
    ldm train "configs/starter/$stage.yaml" "output=$runs/$stage" "data.path=$data" "$@" \
        ${overrides[@]+"${overrides[@]}"} --resume-if-any 2>&1 | tee -a "$runs/$stage.log"
}

for stage in "${stages[@]}"; do
    case $stage in
        vae | clip) train "$stage" ;;
        unet_128) train unet_128 "codec.path=$runs/vae" "condition.path=$runs/clip" ;;
        unet_256) train unet_256 "model=$runs/unet_128" ;;
        unet_512) train unet_512 "model=$runs/unet_256" ;;
        lcm_256 | lcm_512) train "$stage" "teacher=$runs/unet_${stage#lcm_}" ;;
        judge)
            [ -f "$runs/judge.safetensors" ] ||
                python scripts/train_starter_judge.py --data "$data" --out "$runs/judge.safetensors" --json "$runs/judge.json"
            ;;
        marks_256 | marks_512)
            for model in "unet_${stage#marks_}" "lcm_${stage#marks_}"; do
                python scripts/judge_starter.py --data "$data" --judge "$runs/judge.safetensors" --model "$runs/$model" \
                    --json "$runs/marks_$model.json" --sheets "$runs/marks_$model"
            done
            ;;
        *) echo "unknown stage $stage: vae, clip, unet_128, unet_256, lcm_256, judge, marks_256, unet_512, lcm_512 or marks_512" >&2; exit 2 ;;
    esac
done
