#!/bin/bash
# corpus.shards of the run tiny, for there: rendered by toolkit VERSION.
# Change the pipeline or the cluster's profile, not this file.

# What Slurm is asked for.
#SBATCH --job-name=tiny.corpus.shards
#SBATCH --partition=batch
#SBATCH --account=me
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=56
#SBATCH --array=0-7
#SBATCH --mem=512000M
#SBATCH --time=02:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --output=/shared/runs/tiny/corpus/logs/slurm-%A_%a.log
#SBATCH --open-mode=append
#SBATCH --export=HOME,USER,LOGNAME,SHELL,LANG,PATH

set -euo pipefail

# Secrets: passed on by name from where the job was submitted, or read from a file that nobody else
# can read. Their values stand nowhere in this file.
[[ $(stat -L -c %a /keys/hf) == [46]00 ]] || { echo '/keys/hf: must be readable by its owner alone (chmod 600)' >&2; exit 2; }
HF_TOKEN=$(< /keys/hf)
export HF_TOKEN

# The environment of every rank: the network's preset, the profile's settings, the layout's.
export PYTHONUNBUFFERED=1
export TOKENIZERS_PARALLELISM=true
export TOOLKIT_PHASE=shards
export NCCL_IB_TIMEOUT=22
export PYTHONPATH=/shared/runs/tiny/code/0123456789abcdef
export PYTHONSAFEPATH=1
export SLURM_EXPORT_ENV=ALL  # srun hands it all on, whatever sbatch was told to
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK  # since 22.05 srun does not take it from sbatch
export OMP_NUM_THREADS=56 RAYON_NUM_THREADS=56

# One task of the array is one rank; the ranks need not run at one time.
export RANK=$SLURM_ARRAY_TASK_ID WORLD_SIZE=8 LOCAL_RANK=0 LOCAL_WORLD_SIZE=4

# What each task runs first: it learns its place, and notes its start in its log.
# shellcheck disable=SC2016  # expanded in the task, not here
task='start="on $(hostname), start ${SLURM_RESTART_COUNT:-0}"
echo "--- $(date -u +%FT%TZ) rank $RANK of $WORLD_SIZE $start"
exec "$@"'

# The work. A rank that fails ends the others; a signal of Slurm's reaches the ranks themselves.
code=0
srun --kill-on-bad-exit=1 --wait=60 --cpu-bind=cores --output=/shared/runs/tiny/corpus/logs/rank-"$SLURM_ARRAY_TASK_ID".log --open-mode=append \
    --container-image=/images/toolkit.img \
    --container-mounts=/shared/runs/tiny:/shared/runs/tiny,/data:/data:ro \
    --container-env=PYTHONUNBUFFERED,TOKENIZERS_PARALLELISM,TOOLKIT_PHASE,NCCL_IB_TIMEOUT,PYTHONPATH,PYTHONSAFEPATH,RANK,WORLD_SIZE,LOCAL_RANK,LOCAL_WORLD_SIZE,MASTER_ADDR,MASTER_PORT,OMP_NUM_THREADS,RAYON_NUM_THREADS,SLURM_RESTART_COUNT,HF_TOKEN \
    --no-container-mount-home \
    bash -c "$task" rank \
    /venv/bin/python -m toolkit.worker /shared/runs/tiny/corpus || code=$?

# Stopped by Slurm, ahead of the time limit: the job goes on from what was saved, under its own id.
if (( (code == 85 || code == 130) && ${SLURM_RESTART_COUNT:-0} < 10 )); then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
