#!/usr/bin/env bash
# The main table of Pocket City: source only, the colours of the collection without a diffusion model, and
# generated images, three seeds, five targets. These are the stages of
# `python pipeline/run.py --recipe pocket_ladder` that it needs; about an hour and a half on two CPU cores with
# `--jobs 2 --values precision=bf16`.
#
#   scripts/reproduce/pocket_table.sh [OPTIONS OF pipeline/run.py]      such as --workspace DIR, --dry-run
#
# Complete stages are skipped, so the script can be stopped and started again. The whole recipe
# continues from its results.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source scripts/reproduce/python.sh

stages=(source collection oracle-heldout generated color-reinhard)
for target in dev cityscapes bdd100k mapillary acdc dark_zurich; do stages+=("target-$target"); done
for seed in 0 1 2; do
    for set in source_only generated reinhard; do
        stages+=("train-$set-2000-$seed" "score-dev-$set-2000-$seed" "score-$set-2000-$seed")
    done
done
$python pipeline/run.py --recipe pocket_ladder "$@" --only "${stages[@]}"
