#!/usr/bin/env bash
# Lint and tests on a laptop without GPU or data: bash launch/test.sh [pytest arguments]. Long ones: bash launch/test.sh -m slow
set -euo pipefail
cd "$(dirname "$0")/.."
bash launch/setup.sh
.venv/bin/ruff check .
.venv/bin/ruff format --check .
exec .venv/bin/python -m pytest "$@"
