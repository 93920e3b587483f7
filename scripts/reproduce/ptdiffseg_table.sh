#!/usr/bin/env bash
# PTDiffSeg: frozen Stable Diffusion 1.5, Cityscapes to Dark Zurich, before and after adaptation.
#
#   RAW=data/raw BASE=/models/stable-diffusion-v1-5 scripts/reproduce/ptdiffseg_table.sh [OPTIONS OF pipeline/run.py]      such as --dry-run
#
# Downloads or names the data that is missing, then prepares, trains and scores by the recipe
# configs/pipeline/ptdiffseg_table.yaml, and prints our scores with the published ones below. Complete stages are
# skipped, so the script can be stopped and started again. Settings: published.sh beside this file.
source "$(dirname "${BASH_SOURCE[0]}")/published.sh"
need_data cityscapes dark_zurich
run_recipe ptdiffseg_table "$@"
