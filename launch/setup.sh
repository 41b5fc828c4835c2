#!/usr/bin/env bash
# Install everything into .venv, pinned and hashed; takes seconds if nothing changed.   bash launch/setup.sh
set -euo pipefail
cd "$(dirname "$0")/.."

python=""
for candidate in "${PYTHON:-}" python3.11 python3.12 python3.13 python3; do
  if [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
    python=$candidate
    break
  fi
done
if [ -z "$python" ]; then
  echo "setup: needs Python 3.11, 3.12 or 3.13. Install one, or pass its path: PYTHON=/path/to/python bash launch/setup.sh" >&2
  exit 2
fi

wanted=$(cat launch/requirements.txt pyproject.toml launch/setup.sh | "$python" -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())')
if [ "$(cat .venv/.kits_dist 2>/dev/null)" = "$wanted" ]; then
  exit 0
fi
echo "setup: installing into .venv (about 6 GB with CUDA libraries; a minute with a warm cache)"
[ -x .venv/bin/python ] || "$python" -m venv .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check "uv==0.13.9"
.venv/bin/uv pip install --quiet --python .venv/bin/python --require-hashes -r launch/requirements.txt
.venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation -e .
echo "$wanted" >.venv/.kits_dist
driver=$(cut -d. -f1 < <(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -n 1) || true)
if [[ "$driver" =~ ^[0-9]+$ ]] && [ "$driver" -lt 580 ]; then
  echo "setup: NVIDIA driver $driver is too old for CUDA 13, which needs 580 or newer; .venv/bin/python -m kits_dist.doctor says what to do" >&2
fi
echo "setup: done"
