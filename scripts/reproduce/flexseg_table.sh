#!/usr/bin/env bash
# FLEX-Seg's rows: GTA and DGInStyle's released images to five targets, with emphasis on boundaries.
#
#   RAW=data/raw MIT_B5=/models/mit-b5 scripts/reproduce/flexseg_table.sh [OPTIONS OF pipeline/run.py]      such as --dry-run
#
# Downloads or names the data that is missing, then prepares, trains and scores by the recipe
# configs/pipeline/flexseg_table.yaml, and prints our scores with the published ones below. Complete stages are
# skipped, so the script can be stopped and started again. Settings: published.sh beside this file.
source "$(dirname "${BASH_SOURCE[0]}")/published.sh"
need_data gta dginstyle cityscapes bdd100k mapillary_v1_2 acdc dark_zurich
run_recipe flexseg_table "$@"
