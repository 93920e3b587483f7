#!/usr/bin/env bash
# The pocket results table: source only against source + generated, three seeds, five targets.
#
#   scripts/reproduce/pocket_table.sh [WORKSPACE]        default: runs/pocket_table
#
# Sizes are set by the environment: SOURCE, GENERATED, TARGET (pictures), ITERATIONS, SEEDS.
# Every step resumes or is skipped when complete, so the script can be stopped and started again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

work=${1:-runs/pocket_table}
python=.venv/bin/python
launch="$python -m accelerate.commands.launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no"
SOURCE=${SOURCE:-1000} GENERATED=${GENERATED:-1000} TARGET=${TARGET:-200}
ITERATIONS=${ITERATIONS:-2000} SEEDS=${SEEDS:-"0 1 2"}
targets="cityscapes bdd100k mapillary acdc dark_zurich"

$python pipeline/pocket_city.py --split source --n "$SOURCE" --output "$work/data/source"
for target in $targets; do
    $python pipeline/pocket_city.py --split "$target" --n "$TARGET" --output "$work/data/targets/$target"
done

# The shipped ControlNet; finetune/ trains it anew (see the model card).
$launch generation/run.py --config configs/generation/pocket.yaml --n "$GENERATED" \
    --layouts "$work/data/source" --output "$work/generated"

recipe=configs/segtrain/segformer_pocket.py
checkpoints=()
for seed in $SEEDS; do
    $launch segtrain/train.py $recipe --source "$work/data/source" --iterations "$ITERATIONS" \
        --seed "$seed" --output "$work/segtrain/source_only_$seed"
    $launch segtrain/train.py $recipe --source "$work/data/source" --generated "$work/generated" \
        --generated-share 0.5 --iterations "$ITERATIONS" --seed "$seed" \
        --output "$work/segtrain/source_generated_$seed"
    checkpoints+=("$work/segtrain/source_only_$seed" "$work/segtrain/source_generated_$seed")
done

$launch segtrain/score.py --checkpoint "${checkpoints[@]}" \
    --targets $(printf "$work/data/targets/%s " $targets) --output "$work/scores.json"
