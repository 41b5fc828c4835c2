#!/usr/bin/env bash
# Lint and tests on a laptop without GPU or data: bash launch/test.sh [pytest arguments]. Long ones: bash launch/test.sh -m slow
set -euo pipefail
cd "$(dirname "$0")/.."
bash launch/setup.sh
.venv/bin/ruff check .
.venv/bin/ruff format --check .
export OMP_WAIT_POLICY=passive  # threads that wait do not spin: there are test files beside each other; -n 0: one by one
exec .venv/bin/python -m pytest -n logical --maxprocesses 4 --dist loadfile "$@"
