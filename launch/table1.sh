#!/usr/bin/env bash
# Reproduce the poster's Table 1: bash launch/table1.sh [store=DIR] [seeds=3] [runs=DIR] [size=small|full]
#
# Train the poster's three configurations and our best recipe, both phases each; evaluate each cascade on the test cases; print
# the table by the challenge's measure and by the poster's, next to the poster's figures. Without store= it uses phantoms; else name
# a store of `prepare splits=poster`. Finished trainings are not repeated. Paths are relative to the current folder.
set -euo pipefail
project=$(cd "$(dirname "$0")/.." && pwd)
bash "$project/launch/setup.sh"
export PATH="$project/.venv/bin:$PATH" PYTHONPATH="$project${PYTHONPATH:+:$PYTHONPATH}"
exec python -m benchmarks.table1 "$@"
