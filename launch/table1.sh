#!/usr/bin/env bash
# Reproduce the poster's Table 1: bash launch/table1.sh [store=DIR] [seeds=3] [runs=DIR] [size=small|full]
#
# Train the simple U-Net, and the ResNet34 U-Net as first run and with our best recipe (both in two phases); evaluate each on the test
# cases; print the table with intervals next to the poster's results. Without store= it uses phantoms. Finished trainings are not
# repeated. Paths are relative to the current folder.
set -euo pipefail
project=$(cd "$(dirname "$0")/.." && pwd)
bash "$project/launch/setup.sh"
export PATH="$project/.venv/bin:$PATH" PYTHONPATH="$project${PYTHONPATH:+:$PYTHONPATH}"
exec python -m benchmarks.table1 "$@"
