#!/usr/bin/env bash
# DIFF: Stable Diffusion 2.1 features, GTA to Cityscapes, ACDC and Dark Zurich.
#
#   RAW=data/raw BASE=/models/stable-diffusion-2-1 scripts/reproduce/diff_table.sh [OPTIONS OF pipeline/run.py]      such as --dry-run
#
# Downloads or names the data that is missing, then prepares, trains and scores by the recipe
# configs/pipeline/diff_table.yaml, and prints our scores with the published ones below. Complete stages are
# skipped, so the script can be stopped and started again. Settings: published.sh beside this file.
source "$(dirname "${BASH_SOURCE[0]}")/published.sh"
need_data gta cityscapes acdc dark_zurich
run_recipe diff_table "$@"
