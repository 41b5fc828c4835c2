#!/usr/bin/env bash
# Run the whole pipeline on synthetic patients: phantom -> audit -> prepare -> train -> evaluate -> report. Needs no data and no GPU.
#
#   bash launch/demo.sh
#
# All output goes to runs/demo/. SEED=7 bash launch/demo.sh generates other patients, in runs/demo_seed7/.
set -euo pipefail
cd "$(dirname "$0")/.."
bash launch/setup.sh
export PATH="$PWD/.venv/bin:$PATH"

seed=${SEED:-0}
demo=runs/demo
[ "$seed" = 0 ] || demo=runs/demo_seed$seed
gpus=$(python -c 'import torch; print(torch.cuda.device_count())')
if [ "$gpus" -gt 0 ]; then
  size=64x256x256 cases=60 config=configs/demo_gpu.yaml
  launch=(--config_file launch/single.yaml)
  [ "$gpus" = 1 ] || launch=(--config_file launch/ddp.yaml --num_processes "$gpus")
else
  size=32x128x128 cases=96 config=configs/demo.yaml
  launch=(--config_file launch/cpu.yaml)
fi

# Move a demo with other settings (from an older checkout, or from before a GPU was added) out of the way.
settings="$cases $size $seed $(sha256sum <$config)"
if [ -d "$demo" ] && [ "$(cat "$demo/.settings" 2>/dev/null)" != "$settings" ]; then
  mv "$demo" "$demo.$(date +%Y%m%d_%H%M%S)"
  echo "demo: settings changed, the previous demo was moved to $demo.*"
fi
mkdir -p "$demo" && echo "$settings" >"$demo/.settings"

step() { printf '\n== %s\n' "$*"; }
step "1/5 phantom: $cases synthetic patients"
[ -f "$demo/raw/audit.json" ] || python -m kits_dist.phantom output="$demo/raw" cases=$cases size=$size seed="$seed"
step "2/5 audit"
python -m kits_dist.audit source="$demo/raw"
step "3/5 prepare: NIfTI -> slice store"
python -m kits_dist.prepare source="$demo/raw" store="$demo/store"
step "4/5 train ($([ "$gpus" -gt 0 ] && echo "$gpus GPU" || echo "2 processes on the CPU"))"
accelerate launch "${launch[@]}" -m kits_dist.train config=$config data.store="$demo/store" run="$demo/run" resume=auto
step "5/5 evaluate the held-out test cases"
python -m kits_dist.evaluate run="$demo/run" split=test
python -m kits_dist.report run="$demo/run"

cat <<END

These patients are synthetic: no score above says anything about KiTS.
  report      $demo/run/report.html
  pictures    $demo/run/evaluation/test/panel.png
  curves      .venv/bin/tensorboard --logdir runs
  predict     .venv/bin/python -m kits_dist.predict run=$demo/run input=$demo/raw/case_00000/imaging.nii.gz output=$demo/labels
END
