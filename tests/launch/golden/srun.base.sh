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
#SBATCH --export=HOME,USER,LOGNAME,SHELL,LANG,PATH,WANDB_API_KEY

set -euo pipefail

# Secrets: passed on by name from where the job was submitted, or read from a file that nobody else
# can read. Their values stand nowhere in this file.
: "${WANDB_API_KEY:?is not set where the job was submitted}"

# The environment of every rank: the network's preset, the profile's settings, the layout's.
export TORCH_NCCL_DUMP_ON_TIMEOUT=1
export TORCH_NCCL_TRACE_BUFFER_SIZE=2000
export TORCH_FR_BUFFER_SIZE=2000
export TORCH_NCCL_DEBUG_INFO_TEMP_FILE=/shared/runs/tiny/base/logs/flight-
export TORCH_FR_DUMP_TEMP_FILE=/shared/runs/tiny/base/logs/flight-
export TORCH_NCCL_AVOID_RECORD_STREAMS=1
export PYTHONUNBUFFERED=1
export OMP_NUM_THREADS=28
export RAYON_NUM_THREADS=28
export TOKENIZERS_PARALLELISM=true
export TOOLKIT_LOCK_SECONDS=200
export CUDA_DEVICE_MAX_CONNECTIONS=1
export NCCL_IB_TIMEOUT=22
export NCCL_IB_HCA='=mlx5_0'
export PYTHONPATH=/shared/runs/tiny/code/0123456789abcdef
export PYTHONSAFEPATH=1
export TOOLKIT_QUIET_STOP=1
export TOOLKIT_WATCHDOG=1800
export SLURM_EXPORT_ENV=ALL  # srun hands it all on, whatever sbatch was told to
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK  # since 22.05 srun does not take it from sbatch

# Where the ranks meet: the first node, at a port of this job's own and of this start of it, below
# those that the kernel hands out by itself.
mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
export MASTER_ADDR=${hosts[0]} MASTER_PORT=$((20000 + (SLURM_JOB_ID + 97 * ${SLURM_RESTART_COUNT:-0}) % 12768))

# How this job goes on, and why not: noted in a file of the stage's, which `toolkit status` shows.
job=$SLURM_JOB_ID
record=/shared/runs/tiny/base/going-on/base.json
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
    echo "base: $1" >&2
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
    echo "base: $1: started again" >&2
    refused=$(scontrol requeue "$job" 2>&1) || end "$1: not started again, since scontrol requeue was refused ($refused)"
}

# again REASON: it is started again, unless it came no further than when it was last started again
again() {
    local before=$step
    step=$(sed -nE 's/.*"done": ?([0-9]+).*"unit": ?"iterations".*/\1/p' /shared/runs/tiny/base/progress.json 2> /dev/null || true)
    : "${step:=0}"
    if (( step <= before )); then
        end "$1 at step $step, no further than before (step $before): not started again"
    else
        go_on "$1 at step $step"
    fi
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
if [[ ! -e /shared/runs/tiny/corpus/artifact/artifact.json ]]; then
    end 'what it takes is not there: /shared/runs/tiny/corpus/artifact'
    exit 2
fi

# What each task runs first: it learns its place, and notes its start in its log.
# shellcheck disable=SC2016  # expanded in the task, not here
task='export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID
export LOCAL_WORLD_SIZE=$((SLURM_NTASKS / SLURM_NNODES))
start="on $(hostname), start ${SLURM_RESTART_COUNT:-0}"
echo "--- $(date -u +%FT%TZ) rank $RANK of $WORLD_SIZE $start"
trap "" USR1  # until the rank listens itself: by default it would die of it
exec "$@"'

# Preflight: the ranks look at their nodes and measure the way between them, in a step of their own.
# $checks has what they found, and in its file "unfit" a line for each node that is not fit, and why.
checks=/shared/runs/tiny/base/preflight/"$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}"
mkdir -p "$checks"
printf '%s\n' "${hosts[@]}" > "$checks/nodes"
# shellcheck disable=SC2016  # expanded in the task, not here
look='export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID
export LOCAL_WORLD_SIZE=$((SLURM_NTASKS / SLURM_NNODES))
start="on $(hostname), start ${SLURM_RESTART_COUNT:-0}"
echo "--- $(date -u +%FT%TZ) rank $RANK of $WORLD_SIZE $start"
trap "" USR1  # until the rank listens itself: by default it would die of it
exec "$@"'
code=0
timeout --kill-after=30 1020 srun --kill-on-bad-exit=0 --wait=0 --cpu-bind=cores --output=/shared/runs/tiny/base/logs/preflight-%t.log --open-mode=append \
    bash -c "$look" rank \
    /venv/bin/python -m toolkit.preflight /shared/runs/tiny/base '{"gpus": 8}' &
wait "$!" || code=$?

# Whether Slurm would still have nodes for this job without those of a list; yes where it can't say.
enough_without() {
    local script
    script=$(scontrol write batch_script "$SLURM_JOB_ID" - 2> /dev/null) || return 0
    sbatch --test-only <<< "$script" &> /dev/null || return 0
    sbatch --test-only --exclude="$1" <<< "$script" &> /dev/null
}

# exclude ID...: these jobs, which wait, get no node of $without
exclude() {
    local id
    for id in "$@"; do
        scontrol update JobId="$id" ExcNodeList="$without" || echo "job $id may start on $named again" >&2
    done
}

# Ranks that came to no verdict: the nodes of which no rank has looked are named by their silence.
if (( code != 0 && code != 85 && code != 130 )) && [[ ! -e $checks/summary.json ]]; then
    silent=()
    for host in "${hosts[@]}"; do
        grep -qs "\"node\": \"$host\".*\"looked\": true" "$checks"/rank-*.json || silent+=("$host")
    done
    if (( ${#silent[@]} == ${#hosts[@]} )); then
        end "the preflight did not start on any node (exit code $code): see "/shared/runs/tiny/base/logs/preflight-0.log
        exit 1
    fi
    for host in "${silent[@]}"; do
        printf '%s\t%s\n' "$host" "start: no rank of it came to look: its container, or its Python, did not start, or hangs"
    done > "$checks/unfit"
    (( ${#silent[@]} )) || printf '%s\t%s\n' "${hosts[0]}" "rank 0: it came to no verdict (exit code $code)" > "$checks/unfit"
fi

# A verdict that names no node stands, also where a rank ended badly behind it.
if (( code != 0 && code != 85 && code != 130 )) && [[ ! -s $checks/unfit ]]; then
    code=2
    ! grep -qs '"fit": true' "$checks/summary.json" || code=0
fi

# A node that is not fit is excluded, and the job goes on elsewhere, if there is an elsewhere.
case $code in
0) ;;
85 | 130) go_on "stopped before the work began"; exit "$code" ;;
2) end "the preflight found what is no node's own fault: see "/shared/runs/tiny/base/logs/preflight-0.log; exit "$code" ;;
*)
    sed 's/^/unfit: /' "$checks/unfit" >&2
    named=$(cut -f1 "$checks/unfit" | sort -u | paste -sd,)
    without=$({ scontrol show job "$SLURM_JOB_ID" || true; } | sed -nE 's/.*ExcNodeList=([^ (]+).*/\1,/p')$named
    if ! enough_without "$without"; then
        end "unfit: $named; without $without there are too few nodes for this job"
        exit 86
    fi
    go_on "unfit: $named"
    if grep -q '"ended": false' "$record"; then
        exclude "$job"  # it waits again now, for as long as Slurm takes to end this script
    fi
    exit 86
    ;;
esac

# The work. A rank that fails ends the others; a signal of Slurm's reaches the ranks themselves.
code=0
srun --kill-on-bad-exit=1 --wait=0 --cpu-bind=cores --output=/shared/runs/tiny/base/logs/rank-%t.log --open-mode=append \
    bash -c "$task" rank \
    /venv/bin/python -m toolkit.worker /shared/runs/tiny/base &
wait "$!" || code=$?  # so that this script hears at once when it is told to end

# Ranks that were stopped have saved and ended with 0: without its artifact the stage is not done.
if (( code == 0 )) && [[ ! -e /shared/runs/tiny/base/artifact/artifact.json ]]; then
    code=85
fi

# One rank's mistake counts, whatever srun says of those that it then ended.
if (( code != 0 )) && [[ -n $(find /shared/runs/tiny/base/errors -name 'rank-*.json' -newer "$record" \
    -exec grep -q '"exit_code": 2,' {} \; -print -quit 2> /dev/null) ]]; then
    code=2
fi

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
*) again "ended with $code" ;;
esac
exit "$code"
