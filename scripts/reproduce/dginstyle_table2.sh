#!/usr/bin/env bash
# DGInStyle, table 2: Cityscapes to four targets, DAFormer and HRDA, without and with generated images.
#
#   RAW=data/raw BASE=/models/stable-diffusion-v1-5 MIT_B5=/models/mit-b5 scripts/reproduce/dginstyle_table2.sh [OPTIONS OF pipeline/run.py]      such as --dry-run
#
# Downloads or names the data that is missing, then prepares, trains and scores by the recipe
# configs/pipeline/dginstyle_table2.yaml, and prints our scores with the published ones below. Complete stages are
# skipped, so the script can be stopped and started again. Settings: published.sh beside this file.
source "$(dirname "${BASH_SOURCE[0]}")/published.sh"
need_data cityscapes bdd100k mapillary_v1_2 acdc dark_zurich
run_recipe dginstyle_table2 "$@"
