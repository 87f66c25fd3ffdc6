#!/bin/bash
# Sends the jobs of the run tiny to Slurm, in order of work: all of them, or none.
# `toolkit submit` sends the same, and notes the jobs' ids for status, logs and cancel.
set -Eeuo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

# The jobs find their settings and their code in the run's folder, where `toolkit submit` lays them.
if [[ ! -e /shared/runs/tiny/pipeline.yaml ]]; then
    echo '/shared/runs/tiny is not laid out: toolkit submit does that, and sends the jobs' >&2
    exit 1
fi

declare -A job=()
take_back() {
    (( ${#job[@]} == 0 )) || scancel "${job[@]}"
    exit "$1"
}
trap 'take_back "$?"' ERR
trap 'take_back 130' INT TERM HUP

# settle SCRIPT: to sbatch, SBATCH_* variables count more than a script's own options: of these
# stay only defaults for what the script leaves open
settle() {
    local name option
    for name in "${!SBATCH_@}"; do
        option=${name#SBATCH_}
        case $option in
        ACCOUNT | PARTITION | QOS | CONSTRAINT | RESERVATION)
            ! grep -q "^#SBATCH --${option,,}=" "$1" || unset "$name" ;;
        *) unset "$name" ;;
        esac
    done
}

# send NAME OPTION... SCRIPT: submits a script, and keeps its job's id
send() {
    local id
    id=$(settle "${@: -1}"; sbatch --parsable "${@:2}")
    job[$1]=${id%%;*}
    echo "$1 ${job[$1]}"
}

send vocabulary vocabulary.sh
send corpus.shards --kill-on-invalid-dep=yes \
    "--dependency=afterok:${job[vocabulary]}" corpus.shards.sh
send corpus.finish --kill-on-invalid-dep=yes \
    "--dependency=afterok:${job[corpus.shards]}" corpus.finish.sh
send base.1 --kill-on-invalid-dep=yes \
    "--dependency=afterok:${job[corpus.finish]}" base.1.sh
send base.2 --kill-on-invalid-dep=yes \
    "--dependency=afterok:${job[corpus.finish]},afterany:${job[base.1]}" base.2.sh
send base.3 --kill-on-invalid-dep=yes \
    "--dependency=afterok:${job[corpus.finish]},afterany:${job[base.2]}" base.3.sh
send base-hf --kill-on-invalid-dep=yes \
    "--dependency=afterok:${job[base.1]}?afterok:${job[base.2]}?afterok:${job[base.3]}" base-hf.sh
send other other.sh
send more --kill-on-invalid-dep=yes \
    "--dependency=afterok:${job[other]}" more.sh
send again.1 --kill-on-invalid-dep=yes \
    "--dependency=afterok:${job[more]},afterany:${job[base.3]}" again.1.sh
send again.2 --kill-on-invalid-dep=yes \
    "--dependency=afterok:${job[more]},afterany:${job[base.3]}:${job[again.1]}" again.2.sh
