#!/usr/bin/env bash
# Generate in a Slurm array: task i makes shard i of N, and the tasks share nothing but the output.
#
#   sbatch --array=0-63 scripts/slurm_array.sh 64 --n 50000 --output s3://bucket/set
#   sbatch --array=5,9 scripts/slurm_array.sh 64 --n 50000 --output s3://bucket/set    # two again
#   python pipeline/merge.py --data s3://bucket/set --n 50000                  # names what is missing
#
# N stands in the command, so that single tasks can be repeated. With a folder as output each task
# needs its own: --output "/data/set/part-{}", where {} becomes i; pipeline/merge.py --parts joins
# them. Three minutes before the time limit the program is asked to stop: it commits what it has, and
# the task is queued again. Preempted tasks are queued again by Slurm.
#SBATCH --job-name=streetforge-shard
#SBATCH --gpus=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@180

set -euo pipefail
[ $# -ge 1 ] || { echo "usage: sbatch --array=0-63 scripts/slurm_array.sh 64 [OPTIONS OF generation/run.py]" >&2; exit 2; }
cd "${STREETFORGE_ROOT:-$SLURM_SUBMIT_DIR}"
shards=$1 index=$SLURM_ARRAY_TASK_ID
shift

again=no
trap 'again=yes; kill -TERM "$program"' USR1
trap 'kill -TERM "$program"' TERM
"${STREETFORGE_PYTHON:-.venv/bin/python}" generation/run.py --shard "$index/$shards" "${@//\{\}/$index}" &
program=$!
while code=0; wait "$program" || code=$?; kill -0 "$program" 2>/dev/null; do :; done # signals end `wait`
code=0
wait "$program" || code=$?
if [ "$again" = yes ] && [ "$code" -ne 0 ]; then
    scontrol requeue "${SLURM_ARRAY_JOB_ID}_$index"
fi
exit "$code"
