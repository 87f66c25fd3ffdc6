#!/bin/bash
# base of the run tiny, for there: rendered by toolkit VERSION.
# Change the pipeline or the cluster's profile, not this file.

# What Slurm is asked for.
#SBATCH --job-name=tiny.base
#SBATCH --partition=batch
#SBATCH --account=me
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=28
#SBATCH --gpus-per-node=h100:8
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=1-12:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --output=/shared/runs/tiny/base/logs/slurm-%j.log
#SBATCH --open-mode=append
#SBATCH --export=HOME,USER,LOGNAME,SHELL,LANG,PATH

set -euo pipefail

# The environment of every rank: the network's preset, the profile's settings, the layout's.
export TORCH_NCCL_DUMP_ON_TIMEOUT=1
export TORCH_NCCL_TRACE_BUFFER_SIZE=2000
export TORCH_FR_BUFFER_SIZE=2000
export TORCH_NCCL_DEBUG_INFO_TEMP_FILE=/shared/runs/tiny/base/logs/flight-
export TORCH_FR_DUMP_TEMP_FILE=/shared/runs/tiny/base/logs/flight-
export TORCH_NCCL_AVOID_RECORD_STREAMS=1
export PYTHONUNBUFFERED=1
export TOKENIZERS_PARALLELISM=true
export CUDA_DEVICE_MAX_CONNECTIONS=1
export NCCL_IB_TIMEOUT=22
export PYTHONPATH=/shared/runs/tiny/code/0123456789abcdef
export PYTHONSAFEPATH=1
export TOOLKIT_QUIET_STOP=1
export TOOLKIT_WATCHDOG=1800
export SLURM_EXPORT_ENV=ALL  # srun hands it all on, whatever sbatch was told to
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK  # since 22.05 srun does not take it from sbatch
export OMP_NUM_THREADS=28 RAYON_NUM_THREADS=28

# Where the ranks meet: the first node, at a port of this job's own, below those that the kernel
# hands out by itself.
mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
export MASTER_ADDR=${hosts[0]} MASTER_PORT=$((20000 + SLURM_JOB_ID % 12768))

# What each task runs first: it learns its place, and notes its start in its log.
# shellcheck disable=SC2016  # expanded in the task, not here
task='export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID
export LOCAL_WORLD_SIZE=$((SLURM_NTASKS / SLURM_NNODES))
start="on $(hostname), start ${SLURM_RESTART_COUNT:-0}"
echo "--- $(date -u +%FT%TZ) rank $RANK of $WORLD_SIZE $start"
exec "$@"'

# The work. A rank that fails ends the others; a signal of Slurm's reaches the ranks themselves.
code=0
srun --kill-on-bad-exit=1 --wait=60 --cpu-bind=cores --output=/shared/runs/tiny/base/logs/rank-%t.log --open-mode=append \
    bash -c "$task" rank \
    apptainer exec --nv --bind=/shared/runs/tiny:/shared/runs/tiny --bind=/data:/data:ro /images/toolkit.img \
    /venv/bin/python -m toolkit.worker /shared/runs/tiny/base || code=$?

# Ranks that were stopped have saved and ended with 0: without its artifact the stage is not done.
if (( code == 0 )) && [[ ! -e /shared/runs/tiny/base/artifact/artifact.json ]]; then
    code=85
fi

# Stopped by Slurm, ahead of the time limit: the job goes on from what was saved, under its own id.
if (( (code == 85 || code == 130) && ${SLURM_RESTART_COUNT:-0} < 10 )); then
    scontrol requeue "$SLURM_JOB_ID"
fi

# A crash: training goes on from its last checkpoint, unless it came no further than the last time.
if (( code != 0 && code != 2 && code != 85 && code != 130 )); then
    reached=$(sed -nE 's/.*"done": ?([0-9]+).*/\1/p' /shared/runs/tiny/base/progress.json 2> /dev/null || true)
    last=$(cat /shared/runs/tiny/base/logs/crashed-"$SLURM_JOB_ID" 2> /dev/null || echo -1)
    echo "${reached:=0}" > /shared/runs/tiny/base/logs/crashed-"$SLURM_JOB_ID"
    if (( reached <= last )); then
        echo "ended with $code at step $reached, no further than before (step $last): not started again" >&2
    elif (( ${SLURM_RESTART_COUNT:-0} < 10 )); then
        echo "ended with $code at step $reached: goes on from the last checkpoint" >&2
        scontrol requeue "$SLURM_JOB_ID"
    fi
fi
exit "$code"
