#!/usr/bin/env bash
# The table of diffusion backbones: ten networks, source only and with generated data, five targets.
# Run scripts/reproduce/pocket_table.sh first, or name your own sets, see below.
#
#   scripts/reproduce/diffseg_table.sh [WORKSPACE]        default: runs/diffseg_table
#
# SOURCE, GENERATED and TARGETS are dataset folders; the defaults are those of
# `python pipeline/run.py --recipe pocket_ladder`.
# ITERATIONS, BATCH, LIMIT (images per target),
# SEEDS (of the networks with spread), NETWORKS and ARMS set the size. Every step resumes or is skipped
# when complete, so the script can be stopped and started again; two of them may share a workspace if
# each has its own ARMS (one per core: OMP_NUM_THREADS=1).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

case ${1:-} in
    -*) echo "$1: is no option of this script; give a WORKSPACE or nothing" >&2; exit 2 ;;
esac
work=${1:-runs/diffseg_table}
source scripts/reproduce/python.sh
SOURCE=${SOURCE:-runs/ladder/data/source} GENERATED=${GENERATED:-runs/ladder/sets/generated}
TARGETS=${TARGETS:-runs/ladder/data/targets}
ITERATIONS=${ITERATIONS:-200} BATCH=${BATCH:-4} LIMIT=${LIMIT:-20} SEEDS=${SEEDS:-"0 1 2"}
NETWORKS=${NETWORKS:-"segformer random vpd ptdiffseg ptdiffseg-plain diff1 diff5-plain diff5 diff37
    streetforge"}
ARMS=${ARMS:-"source generated"}
targets=(cityscapes bdd100k mapillary acdc dark_zurich)
once="vpd diff1 diff37"  # seed 0 alone

folders=()
for target in "${targets[@]}"; do folders+=("$TARGETS/$target"); done

score() {  # OUTPUT CHECKPOINT [OPTIONS]
    [ -f "$1" ] || $python segtrain/score.py --output "$1" --checkpoint "$2" --limit "$LIMIT" \
        --targets "${@:4}" ${3:+--scene "$3"}
}

for seed in $SEEDS; do
    for network in $NETWORKS; do
        options=() recipe=${network%-plain} iterations=$ITERATIONS
        case $network in
            segformer) iterations=$((ITERATIONS * 5 / 2)) ;;  # of the cost of ptdiffseg
            ptdiffseg-plain) options=(--cfg-options model.prompt_randomization=None) ;;
            diff5-plain) options=(--cfg-options model.ipkl=None) ;;
            diff37) recipe=diff options=(--cfg-options model.ipkl=None) ;;
        esac
        [[ " $once " == *" $network "* && $seed != 0 ]] && continue
        for arm in $ARMS; do
            data=(--source "$SOURCE")
            [ "$arm" = generated ] && data+=(--generated "$GENERATED" --generated-share 0.5)
            run=$work/$network/${arm}_$seed
            $python segtrain/train.py "configs/segtrain/${recipe}_pocket.py" "${data[@]}" \
                --steps "$iterations" --batch-size "$BATCH" --seed "$seed" --output "$run" \
                --checkpoint-interval 50 "${options[@]}"
            score "$run/scores.json" "$run" "" "${folders[@]}"
            [[ $network = ptdiffseg || $network = streetforge ]] || continue  # have scene prompts
            for target in "${targets[@]}"; do
                scene=$run/scene_$target
                $python segtrain/adapt.py --checkpoint "$run" --target "$TARGETS/$target" \
                    --limit "$LIMIT" --steps 40 --seed "$seed" --output "$scene"
                score "$scene/scores.json" "$run" "$scene" "$TARGETS/$target"
            done
        done
    done
done

$python experiments/diffseg_table.py --workspace "$work"
