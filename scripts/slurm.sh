#!/usr/bin/env bash
# Start any stage on the nodes of a Slurm job, one accelerate launcher per node.
#
#   sbatch --nodes 4 --gpus-per-node 8 scripts/slurm.sh generation/run.py --n 50000 --output /data/generated
#   sbatch --nodes 2 --gpus-per-node 8 scripts/slurm.sh finetune/controlnet.py --config ... --output ...
#   STREETFORGE_ACCELERATE=configs/accelerate/fsdp_sdxl.yaml sbatch ... scripts/slurm.sh finetune/unet.py ...
#
# Three minutes before the time limit the programs receive a stop signal. They finish the current
# sample or update, save and exit; the job then queues itself again and continues. Slurm queues
# preempted jobs again (--requeue). The same sbatch line continues a job that failed. The output must
# be on a file system that all nodes share.
#SBATCH --job-name=streetforge
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@180

set -euo pipefail
[ $# -ge 1 ] || { echo "usage: sbatch --nodes N --gpus-per-node G scripts/slurm.sh PROGRAM [OPTIONS]" >&2; exit 2; }

# sbatch runs a copy of this file elsewhere, so the checkout is where it was submitted from.
cd "${STREETFORGE_ROOT:-$SLURM_SUBMIT_DIR}"
[ -f "$1" ] || { echo "slurm.sh: $PWD/$1 does not exist; submit from the checkout, or set STREETFORGE_ROOT" >&2; exit 2; }

nodes=$SLURM_JOB_NUM_NODES
per_node=${SLURM_GPUS_ON_NODE:-1}
main_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
main_port=$((20000 + SLURM_JOB_ID % 20000))
kind=(--mixed_precision no --dynamo_backend no)
[ $((nodes * per_node)) -gt 1 ] && kind+=(--multi_gpu)
[ -n "${STREETFORGE_ACCELERATE:-}" ] && kind=(--config_file "$STREETFORGE_ACCELERATE")

# Launchers kill their processes half a minute after a stop signal; a checkpoint can take longer.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=150

# scancel signals the steps. srun itself would take TERM as the order to kill at once.
ask_to_stop() { scancel --signal=TERM "$SLURM_JOB_ID"; }
again=no
trap 'again=yes; ask_to_stop' USR1
trap ask_to_stop TERM

# SLURM_NODEID differs per node, so it is expanded there, not here.
launch='exec .venv/bin/python -m accelerate.commands.launch --machine_rank "$SLURM_NODEID" "$@"'
srun --kill-on-bad-exit=1 bash -c "$launch" launch \
    --num_machines "$nodes" --num_processes $((nodes * per_node)) "${kind[@]}" \
    --main_process_ip "$main_node" --main_process_port "$main_port" "$@" &
step=$!
while code=0; wait "$step" || code=$?; kill -0 "$step" 2>/dev/null; do :; done # signals end `wait`
code=0
wait "$step" || code=$? # the program's own
if [ "$again" = yes ] && [ "$code" -ne 0 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
