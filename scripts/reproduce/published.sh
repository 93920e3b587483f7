# Sourced by the scripts in this folder: data and recipe of a published table. Not to be run itself.
#
# RAW contains one unpacked dataset in each folder RAW/NAME. Missing datasets are downloaded; for those
# that require a registration, the script names the files and the place to register. BASE and MIT_B5
# replace the weights that the recipe names. VALUES are more NAME=TEXT values of the recipe.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source scripts/reproduce/python.sh
RAW=${RAW:-data/raw}

need_data() {  # DATASET ...
    local missing=() name
    for name; do
        [ -e "$RAW/$name" ] && continue
        echo "$RAW/$name is not there"
        [ -n "$DRY_RUN" ] && continue
        $python pipeline/download.py --dataset "$name" --output "$RAW/$name" || missing+=("$name")
    done
    [ ${#missing[@]} -eq 0 ] && return
    echo "missing in $RAW: ${missing[*]}; put them there as named above, then run the same again" >&2
    exit 2
}

run_recipe() {  # NAME [OPTIONS OF pipeline/run.py]
    local values=(raw="$RAW")
    [ -n "${BASE:-}" ] && values+=(base="$BASE")
    [ -n "${MIT_B5:-}" ] && values+=(mit_b5="$MIT_B5")
    # shellcheck disable=SC2206
    values+=(${VALUES:-})
    $python pipeline/run.py --recipe "$1" "${@:2}" --values "${values[@]}"
}

DRY_RUN=""
for word; do [ "$word" = --dry-run ] && DRY_RUN=yes; done
true
