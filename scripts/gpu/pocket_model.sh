#!/usr/bin/env bash
# The pocket model on one GPU: render, train, measure, pack. Goal: 12 minutes on an H100 with 16 cores.
#
#   bash scripts/gpu/pocket_model.sh OUT          # OUT receives weights, curves, sheets, measurements
#   TOY=1 bash scripts/gpu/pocket_model.sh OUT    # a test run of a few updates on a CPU
#
# A trial of each training runs while the images are rendered. It fills the compiler's cache and
# measures the time of an update; the number of updates is computed from it. VAE_SECONDS, PRIOR_SECONDS
# and CONTROLNET_SECONDS are the time of each training. The same command continues a stopped run. PYTHON
# names the interpreter, WORKSPACE the folder for intermediate files. Needs the packages of pyproject.toml and the extra
# `imagenet`; no network.
# `cat OUT/model.tar.gz.* | tar xz` unpacks the weights.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
out=${1:?name the folder that receives the results}
python=${PYTHON:-python3}
workspace=${WORKSPACE:-/tmp/pocket_model}
trial=$workspace/trial
started=$SECONDS
mkdir -p "$out" "$trial"

if [ -n "${TOY:-}" ]; then
    hardware="" trial_images=210 updates=2 most=(4 4 4)
    data=(num_images=240 num_source=24 num_oracle=140 num_heldout=14)
    rest=(vae_crops=16 unet_crops=16 unet_steps=2 control_crops=16 oracle_steps=2 decoder_steps=2)
    options=(--training.batch-size 2)
else
    hardware=_gpu trial_images=400 updates=60 most=(3000 20000 5000)
    data=(num_oracle=980)
    rest=(vae_crops=40000 unet_crops=6000 unet_steps=300 control_crops=24000 decoder_steps=300)
    options=()
fi
data+=(workers="$(nproc)")

say() { echo "[$((SECONDS - started)) s] $*" | tee -a "$out/log.txt"; }

recipe() { # recipe STAGE...: run these stages of the factory
    "$python" pipeline/run.py --recipe pocket_model --workspace "$workspace" \
        --values hardware="$hardware" "${data[@]}" "${rest[@]}" "${steps[@]}" --only "$@"
}

train() { # train NAME BACKEND OPTION...: a few updates at the real batch size
    local name=$1 backend=$2 config=configs/finetune/$1_pocket_model$hardware.yaml
    shift 2
    "$python" -m accelerate.commands.launch --quiet --num_processes=1 --num_machines=1 \
        --mixed_precision=no --dynamo_backend="$backend" "finetune/$name.py" --config "$config" \
        --training.steps "$updates" --training.log-interval 1 --training.workers 4 \
        --output "$trial/$name" "${options[@]}" "$@" > "$trial/$name.log" 2>&1
    say "trial of $name done"
}

trial_of_all() {
    for split in collection source; do
        "$python" pipeline/pocket_city.py --split "$split" --n "$trial_images" --workers "$(nproc)" \
            --output "$trial/$split" > "$trial/$split.log" 2>&1
    done
    local crops=(--cached-crops 512) base=$trial/prior/base
    train vae inductor "${crops[@]}" --adversarial-start 1 --data "$trial/collection" &
    local vae=$!
    train prior inductor --data "$trial/collection" --vae pipeline/pocket/weights/base/vae
    updates=3 train unet no "${crops[@]}" --previews 0 --base "$base" --data "$trial/source" &
    local unet=$!
    train controlnet no "${crops[@]}" --previews 0 --base "$base" --data "$trial/source"
    wait "$vae" "$unet"
}

updates_in() { # updates_in NAME SECONDS MOST: how many updates of a training fit, by its trial
    "$python" - "$trial/$1/metrics.jsonl" "$2" "$3" << 'EOF'
import json
import sys

times = [json.loads(line)["time_s"] for line in open(sys.argv[1])]
between = sorted(after - before for before, after in zip(times, times[1:]))
seconds = between[len(between) // 4]  # other trials run beside it: a quick update tells more
updates = int(float(sys.argv[2]) / max(seconds, 1e-3))
print(max(2, min(updates, int(sys.argv[3]))))
EOF
}

pack() { # what there is so far, so that a run that is cut off brings back what it has
    local parts=()
    for part in vae/vae prior/base unet_half controlnet/controlnet controlnet/segmentation_head; do
        [ -d "$workspace/$part" ] && parts+=("$part")
    done
    rm -f "$out"/model.tar.gz.*
    tar -C "$workspace" -cf - "${parts[@]}" | gzip -1 | split -b 15M - "$out/model.tar.gz."
    tar -C "$workspace" --ignore-failed-read -czf "$out/measured.tar.gz" timings.json trial/*.log \
        logs vae/metrics.jsonl prior/metrics.jsonl prior/averages.json prior/previews \
        unet/metrics.jsonl unet/previews controlnet/metrics.jsonl controlnet/previews \
        measured/distances measured/looks measured/fidelity measured/reconstructions \
        2> /dev/null || true
}

steps=()
if [ ! -e "$workspace/steps" ]; then
    say "rendering and trial"
    recipe collection source oracle-train heldout > "$workspace/render.log" 2>&1 &
    rendering=$!
    trial_of_all || true
    for name in vae prior unet controlnet; do
        [ -e "$trial/$name/finished.json" ] || { tail -c 3000 "$trial/$name.log"; exit 1; }
    done
    wait "$rendering"
    vae=$(updates_in vae "${VAE_SECONDS:-80}" "${most[0]}")
    echo "vae_steps=$vae vae_adversarial_start=$((vae * 6 / 10))" \
        "prior_steps=$(updates_in prior "${PRIOR_SECONDS:-200}" "${most[1]}")" \
        "control_steps=$(updates_in controlnet "${CONTROLNET_SECONDS:-90}" "${most[2]}")" > "$workspace/steps"
    say "data rendered; $(cat "$workspace/steps")"
fi
read -ra steps < "$workspace/steps"
for stage in vae prior unet controlnet; do
    recipe "$stage" >> "$out/log.txt" 2>&1 || { tail -n 20 "$out/log.txt"; exit 1; }
    if [ "$stage" = unet ]; then
        "$python" - "$workspace" << 'EOF'
import sys

from diffusers import UNet2DConditionModel

UNet2DConditionModel.from_pretrained(f"{sys.argv[1]}/unet/unet").half().save_pretrained(
    f"{sys.argv[1]}/unet_half"
)
EOF
    fi
    pack
    say "$stage done"
done
recipe decoder model reconstructions generated distances looks oracle fidelity >> "$out/log.txt" 2>&1 || true
pack
say "all done"
