#!/usr/bin/env bash
# Lint, types and tests on a laptop without GPU or data: bash launch/test.sh [pytest arguments]. Long ones: bash launch/test.sh -m slow
set -euo pipefail
cd "$(dirname "$0")/.."
bash launch/setup.sh
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/pyright
export OMP_WAIT_POLICY=passive # test files run at the same time, so threads that wait must not spin; -n 0: one by one
unset PYTHONDONTWRITEBYTECODE  # tests start a hundred processes: compile torch's sources once, not in each of them
exec .venv/bin/python -m pytest -n logical --maxprocesses 4 --dist loadgroup --no-loadscope-reorder "$@"
