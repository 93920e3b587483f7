#!/usr/bin/env bash
# The benchmarks of one GPU at the size of Stable Diffusion 1.5 and 2.1, random weights, 12 minutes.
#
#   bash scripts/gpu/bench.sh OUT          # OUT receives gpu_HARDWARE_DATE_COMMIT.json and .md
#   TOY=1 bash scripts/gpu/bench.sh OUT    # a rehearsal on a CPU with small networks
#   bash scripts/gpu/bench.sh OUT tiles_sd15 attention     # these steps alone
#
# Results are written after each step; a step that fails does not stop the others. SECONDS_IN_ALL is
# the time of all steps together (720). PYTHON names the interpreter, WORKSPACE the folder for base
# models and compiled kernels. STREETFORGE_COMMIT names the commit where there is no git. Needs the
# packages of pyproject.toml and pytest; no network.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
out=${1:?name the folder that receives the results}
shift
python=${PYTHON:-python3}
workspace=${WORKSPACE:-/tmp/gpu_bench}
mkdir -p "$out" "$workspace"
export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-$workspace/compiled}
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
options=(--output "$out" --work "$workspace" --seconds "${SECONDS_IN_ALL:-720}")
[ -z "${TOY:-}" ] || options+=(--toy)
[ $# -eq 0 ] || options+=(--only "$@")
"$python" benchmarks/gpu/suite.py "${options[@]}" 2>&1 | tee "$out/log.txt"
