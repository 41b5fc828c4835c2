#!/usr/bin/env bash
# The poster's Table 1 from one command: bash launch/table1.sh [store=DIR] [seeds=3] [runs=DIR] [size=small|full]
# Trains the simple U-Net, the ResNet34 U-Net as first run and with our best recipe (both in two phases), evaluates each on the
# test cases and prints the table with intervals beside the poster's figures. Without store= on made-up patients. What is
# finished is not done again. Paths are relative to where it is called.
set -euo pipefail
project=$(cd "$(dirname "$0")/.." && pwd)
bash "$project/launch/setup.sh"
export PATH="$project/.venv/bin:$PATH" PYTHONPATH="$project${PYTHONPATH:+:$PYTHONPATH}"
exec python -m benchmarks.table1 "$@"
