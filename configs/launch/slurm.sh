#!/usr/bin/env bash
#SBATCH --job-name=ldm
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
#
# Train on several hosts, and go on after every time limit or preemption until the run is done:
#
#   sbatch configs/launch/slurm.sh configs/mnist_text/unet.yaml train.parallel=fsdp
#
# The run's folder must be on a disk that all hosts share. Five minutes before the time is up Slurm tells this script,
# which tells all processes of the job; they save a checkpoint after the step that they are at, and the job is queued
# again. A preempted job is told in the same way, if the cluster's GraceTime leaves it the time.
#
# LDM_PROCESSES: processes on each host; by default one for each GPU.
# GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME: the network card that hosts reach each other by, where there are several.
set -uo pipefail

told=
trap 'told=yes; scancel --signal=USR1 "$SLURM_JOB_ID"' USR1 TERM

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# torchrun would end at the signal that its processes wait for; they listen to it all the same.
# shellcheck disable=SC2016  # the inner shell is to read these
srun --kill-on-bad-exit=1 bash -c 'trap "" USR1; exec torchrun "$@"' torchrun \
    --nnodes "$SLURM_NNODES" --nproc-per-node "${LDM_PROCESSES:-gpu}" --max-restarts 0 \
    --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "$first:$((20000 + SLURM_JOB_ID % 20000))" \
    -m ldm train "$@" --resume-if-any &
step=$!
wait "$step"
code=$?
while kill -0 "$step" 2>/dev/null; do # a signal ends `wait` before the job step has ended
    wait "$step"
    code=$?
done
if [ "$code" -ne 0 ] && [ -n "$told" ]; then
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
fi
exit "$code"
