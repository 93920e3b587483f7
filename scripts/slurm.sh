#!/usr/bin/env bash
# Start any stage on the nodes of a Slurm job, one accelerate launcher per node.
#
#   sbatch --nodes 4 --gpus-per-node 8 scripts/slurm.sh generation/run.py --n 50000 --output /data/generated
#   sbatch --nodes 2 --gpus-per-node 8 scripts/slurm.sh finetune/controlnet.py --config ... --output ...
#
# The same sbatch line continues an interrupted job: every stage resumes, so --requeue is safe.
# The output must lie on a file system that all nodes share.
#SBATCH --job-name=streetforge
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --signal=TERM@120

set -euo pipefail
[ $# -ge 1 ] || { echo "usage: sbatch --nodes N --gpus-per-node G scripts/slurm.sh PROGRAM [OPTIONS]" >&2; exit 2; }

# sbatch runs a copy of this file elsewhere, so the checkout is where it was submitted from.
cd "${STREETFORGE_ROOT:-$SLURM_SUBMIT_DIR}"
[ -f "$1" ] || { echo "slurm.sh: $PWD/$1 does not exist; submit from the checkout, or set STREETFORGE_ROOT" >&2; exit 2; }

nodes=$SLURM_JOB_NUM_NODES
per_node=${SLURM_GPUS_ON_NODE:-1}
main_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
main_port=$((20000 + SLURM_JOB_ID % 20000))
multi=()
[ $((nodes * per_node)) -gt 1 ] && multi=(--multi_gpu)

# SLURM_NODEID differs per node, so it is expanded there, not here.
launch='exec .venv/bin/python -m accelerate.commands.launch --machine_rank "$SLURM_NODEID" "$@"'
exec srun --kill-on-bad-exit=1 bash -c "$launch" launch \
    --num_machines "$nodes" --num_processes $((nodes * per_node)) "${multi[@]}" \
    --main_process_ip "$main_node" --main_process_port "$main_port" \
    --mixed_precision no --dynamo_backend no "$@"
