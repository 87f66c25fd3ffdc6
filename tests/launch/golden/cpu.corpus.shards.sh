#!/bin/bash -l
# corpus.shards of the run tiny, for there: rendered by toolkit VERSION.
# Change the pipeline or the cluster's profile, not this file.

# What Slurm is asked for.
#SBATCH --job-name=tiny.corpus.shards
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --array=0-7%3
#SBATCH --mem=64000M
#SBATCH --time=02:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --output=/shared/runs/tiny/corpus/logs/slurm-%A_%a.log
#SBATCH --open-mode=append
#SBATCH --export=HOME,USER,LOGNAME,SHELL,LANG,PATH

set -eo pipefail  # not -u before the site's own lines

# The site's software.
module load python/3.11
set -u

# The environment of every rank: the network's preset, the profile's settings, the layout's.
export PYTHONUNBUFFERED=1
export OMP_NUM_THREADS=16
export RAYON_NUM_THREADS=16
export TOKENIZERS_PARALLELISM=true
export TOOLKIT_LOCK_SECONDS=200
export TOOLKIT_PHASE=shards
export PYTHONPATH=/shared/runs/tiny/code/0123456789abcdef
export PYTHONSAFEPATH=1
export SLURM_EXPORT_ENV=ALL  # srun hands it all on, whatever sbatch was told to
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK  # since 22.05 srun does not take it from sbatch

# One task of the array is one rank; the ranks need not run at one time.
export RANK=$SLURM_ARRAY_TASK_ID WORLD_SIZE=8 LOCAL_RANK=0 LOCAL_WORLD_SIZE=4

# How this job goes on, and why not: noted in a file of the stage's, which `toolkit status` shows.
job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID  # SLURM_JOB_ID of one of the tasks is the whole array's
record=/shared/runs/tiny/corpus/going-on/corpus.shards-$SLURM_ARRAY_TASK_ID.json
restarts=0 step=-1 reason=""
noted() { sed -nE 's/.*"'"$1"'": ("([^"]*)"|([^",}]*)).*/\2\3/p' "$record" 2> /dev/null || true; }
if [[ $(noted job) == "$job" ]]; then
    restarts=$(noted restarts) step=$(noted step) reason=$(noted reason)
fi

# note ENDED REASON
note() {
    { mkdir -p "${record%/*}" && printf '{"job": "%s", "link": %d, "links": %d, "restarts": %d, "max_restarts": %d, "step": %d, "ended": %s, "reason": "%s", "time": "%s"}\n' \
        "$job" 1 1 "$restarts" 10 "$step" "$1" "${2//[^[:alnum:] .,:;()\/_=-]/ }" "$(date -u +%FT%TZ)" \
        > "$record.new" && mv "$record.new" "$record"; } || { echo "can't write $record" >&2; return 1; }
}

# end REASON: it is not started again
end() {
    echo "corpus.shards: $1" >&2
    note true "$1" || true
}

# go_on REASON [free]: it is started again, which counts, unless it is free
go_on() {
    if [[ ${2-} != free ]] && (( restarts >= 10 )); then
        end "$1: not started again, since that was done $restarts times (max_restarts)"
        return
    fi
    local refused
    trap '' TERM  # Slurm ends the script of a job that it takes back
    [[ ${2-} == free ]] || restarts=$((restarts + 1))
    if ! note false "$1: started again" && [[ ${2-} != free ]]; then  # uncounted, it could go on for ever
        end "$1: not started again, since that can't be noted"
        return
    fi
    echo "corpus.shards: $1: started again" >&2
    refused=$(scontrol requeue "$job" 2>&1) || end "$1: not started again, since scontrol requeue was refused ($refused)"
}

# again REASON: it is started again, unless it came no further than when it was last started again
again() {
    go_on "$1"
}

# Told to end. At its time limit, without having saved in time, the job goes on from the checkpoint
# before; all else (scancel, a requeue, a preemption, a lost node) is Slurm's to answer.
# shellcheck disable=SC2317  # the trap calls it
told_to_end() {
    trap '' TERM
    [[ $(squeue --noheader --jobs="$job" --format=%r) != TimeLimit ]] || again "the time limit came before the save was done"
    exit 143
}
trap told_to_end TERM
note false "$reason" || true

# What it takes must be there, whatever Slurm made of what this job waits for.
if [[ ! -e /shared/runs/tiny/vocabulary/artifact/artifact.json ]]; then
    end 'what it takes is not there: /shared/runs/tiny/vocabulary/artifact'
    exit 2
fi

# What each task runs first: it learns its place, and notes its start in its log.
# shellcheck disable=SC2016  # expanded in the task, not here
task='start="on $(hostname), start ${SLURM_RESTART_COUNT:-0}"
echo "--- $(date -u +%FT%TZ) rank $RANK of $WORLD_SIZE $start"
trap "" USR1  # until the rank listens itself: by default it would die of it
exec "$@"'

# The work. A rank that fails ends the others; a signal of Slurm's reaches the ranks themselves.
code=0
srun --kill-on-bad-exit=1 --wait=0 --cpu-bind=cores --output=/shared/runs/tiny/corpus/logs/rank-"$SLURM_ARRAY_TASK_ID".log --open-mode=append \
    bash -c "$task" rank \
    /venv/bin/python -m toolkit.worker /shared/runs/tiny/corpus &
wait "$!" || code=$?  # so that this script hears at once when it is told to end

# What follows.
case $code in
0)
    note true "" || true
    ;;
2) end "ended with 2, a mistake that starting again does not mend" ;;
85 | 130)  # stopped by Slurm: ahead of the time limit, or to be preempted
    if [[ $(scontrol show job "$job" 2> /dev/null) =~ PreemptTime=[0-9] ]]; then
        go_on "preempted" free
    else
        again "stopped"
    fi
    ;;
*) end "ended with $code" ;;
esac
exit "$code"
