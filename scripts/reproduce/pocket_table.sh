#!/usr/bin/env bash
# The five-target table: source only against source + generated, three seeds. These are the stages of
# `python pipeline/run.py --recipe pocket_experiment` that it needs; about three hours on two CPU cores.
#
#   scripts/reproduce/pocket_table.sh [OPTIONS OF pipeline/run.py]      such as --workspace DIR, --dry-run
#
# Complete stages are skipped, so the script can be stopped and started again. The whole recipe
# continues from its results.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source scripts/reproduce/python.sh

$python pipeline/run.py --recipe pocket_experiment "$@" --only source \
    target-cityscapes target-bdd100k target-mapillary target-acdc target-dark_zurich \
    unet controlnet unet-looks controlnet-looks generate \
    segment-source-0 segment-source-1 segment-source-2 \
    segment-generated-0 segment-generated-1 segment-generated-2 score
