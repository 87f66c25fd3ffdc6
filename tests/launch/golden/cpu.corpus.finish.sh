#!/bin/bash -l
# corpus.finish of the run tiny, for there: rendered by toolkit VERSION.
# Change the pipeline or the cluster's profile, not this file.

# What Slurm is asked for.
#SBATCH --job-name=tiny.corpus.finish
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=64
#SBATCH --mem=256000M
#SBATCH --time=02:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --output=/shared/runs/tiny/corpus/logs/slurm-%j.log
#SBATCH --open-mode=append
#SBATCH --export=HOME,USER,LOGNAME,SHELL,LANG,PATH

set -eo pipefail  # not -u before the site's own lines

# The site's software.
module load python/3.11
set -u

# The environment of every rank: the network's preset, the profile's settings, the layout's.
export PYTHONUNBUFFERED=1
export TOKENIZERS_PARALLELISM=true
export TOOLKIT_PHASE=finish
export PYTHONPATH=/shared/runs/tiny/code/0123456789abcdef
export PYTHONSAFEPATH=1
export SLURM_EXPORT_ENV=ALL  # srun hands it all on, whatever sbatch was told to
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK  # since 22.05 srun does not take it from sbatch
export OMP_NUM_THREADS=64 RAYON_NUM_THREADS=64

# What each task runs first: it learns its place, and notes its start in its log.
# shellcheck disable=SC2016  # expanded in the task, not here
task='export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID
export LOCAL_WORLD_SIZE=$((SLURM_NTASKS / SLURM_NNODES))
start="on $(hostname), start ${SLURM_RESTART_COUNT:-0}"
echo "--- $(date -u +%FT%TZ) rank $RANK of $WORLD_SIZE $start"
exec "$@"'

# The work. A rank that fails ends the others; a signal of Slurm's reaches the ranks themselves.
code=0
srun --kill-on-bad-exit=1 --wait=60 --cpu-bind=cores --output=/shared/runs/tiny/corpus/logs/rank-%t.log --open-mode=append \
    bash -c "$task" rank \
    /venv/bin/python -m toolkit.worker /shared/runs/tiny/corpus || code=$?

# Stopped by Slurm, ahead of the time limit: the job goes on from what was saved, under its own id.
if (( (code == 85 || code == 130) && ${SLURM_RESTART_COUNT:-0} < 10 )); then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
