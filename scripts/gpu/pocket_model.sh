#!/usr/bin/env bash
# The pocket model on one GPU: render, train, measure, pack. Aim: 12 minutes on an H100 with 16 cores.
#
#   bash scripts/gpu/pocket_model.sh OUT          # OUT receives weights, curves, sheets, measurements
#   TOY=1 bash scripts/gpu/pocket_model.sh OUT    # a rehearsal of a few updates on a CPU
#
# Needs the packages of pyproject.toml and the extra `imagenet`; no network. PYTHON names the interpreter,
# WORKSPACE the folder to work in, PRIOR_SECONDS the time that the U-Net may train. The same command
# continues. The weights are packed in parts of 15 MB: `cat OUT/model.tar.* | tar x` brings them back.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
out=${1:?name the folder that receives the results}
python=${PYTHON:-python3}
workspace=${WORKSPACE:-/tmp/pocket_model}
mkdir -p "$out"

if [ -n "${TOY:-}" ]; then
    values=(hardware= num_images=240 num_source=24 num_oracle=28 num_heldout=14 vae_steps=2 vae_crops=16
        decoder_steps=2 prior_steps=2 unet_steps=2 unet_crops=16 control_steps=2 control_crops=16
        oracle_steps=2)
else
    rate=$("$python" benchmarks/prior_rate.py --config configs/finetune/prior_pocket_model_gpu.yaml --compile)
    steps=$("$python" -c "print(int($rate * ${PRIOR_SECONDS:-300}))")
    values=(hardware=_gpu workers="$(nproc)" num_oracle=980 vae_crops=60000 decoder_steps=3000
        prior_steps="$steps" unet_crops=6000 control_steps=4000 control_crops=24000)
fi

pack() { # what there is so far, so that a run that is cut off brings back what it has
    local parts=()
    for part in decoder/vae prior/base controlnet/controlnet; do
        [ -d "$workspace/$part" ] && parts+=("$part")
    done
    rm -f "$out"/model.tar.*
    tar -C "$workspace" -cf - "${parts[@]}" | split -b 15M - "$out/model.tar."
    tar -C "$workspace" --ignore-failed-read -czf "$out/measured.tar.gz" timings.json \
        vae/metrics.jsonl decoder/metrics.jsonl prior/metrics.jsonl prior/averages.json prior/previews \
        unet/metrics.jsonl controlnet/metrics.jsonl controlnet/previews \
        measured/distances measured/looks measured/fidelity measured/reconstructions/psnr.json 2> /dev/null || true
}
trap pack EXIT

"$python" pipeline/run.py --recipe pocket_model --workspace "$workspace" --values "${values[@]}" 2>&1 |
    tee "$out/log.txt"
