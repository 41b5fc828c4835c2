#!/usr/bin/env bash
# Cross-validation: train every fold of a store, score each case by the network that did not see it, choose rules of
# post-processing on all of them, and test the mean of the networks.
#
#   bash launch/folds.sh store=DIR run=DIR [config=configs/kidney.yaml] [key=value ...]
#
# The other arguments are those of kits_dist.train. In run= lie fold_0, fold_1, ... (one for each fold of the store),
# evaluation/, postprocess.json and report.html. Stopped or failed, the same command goes on from there.
# Tried 2026-11-24 on 2 cores without a GPU (tests/unit/evaluation/test_cross_validation.py).
set -euo pipefail
set -m # each step is a process group of its own: a signal to this script, Ctrl-C too, reaches it once, through stop
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

refuse() {
  echo "folds.sh: $1. Example: bash launch/folds.sh store=DIR run=DIR config=configs/kidney.yaml" >&2
  exit 2
}
store="" run="" arguments=()
for word in "$@"; do
  case $word in
  store=*) store=${word#store=} ;;
  run=*) run=${word#run=} ;;
  data.store=* | data.fold=* | resume=*) refuse "$word is set by this script, for every fold; leave it out" ;;
  *=*) arguments+=("$word") ;;
  *) refuse "cannot read '$word'; arguments are key=value" ;;
  esac
done
[ -n "$store" ] || refuse "store= is missing: a folder made by kits_dist.prepare"
[ -n "$run" ] || refuse "run= is missing: the folder for all folds"
[ -f "$store/splits.json" ] || refuse "store=$store holds no splits.json: name a folder made by kits_dist.prepare"
case $run in *,*) refuse "run=$run holds a comma, which separates runs" ;; esac

doing="set up" child="" stopped=""
stop() { # the whole group; TERM, which no background start makes it ignore: ranks that train save at the same step
  stopped=yes
  [ -z "$child" ] || kill -TERM -- "-$child" 2>/dev/null || true
}
trap stop INT TERM HUP
export PET_SHUTDOWN_TIMEOUT=110 # seconds that a launcher waits for its ranks to save
step() { # TITLE COMMAND...: run it to its end, or leave with its code
  doing=$1
  printf '\n== %s\n' "$doing"
  "${@:2}" </dev/null &
  child=$!
  local code=0
  wait "$child" || code=$? # also ended by a signal to this script
  while [ -n "$stopped" ] && kill -0 -- "-$child" 2>/dev/null; do sleep 0.5; done
  child=""
  leave "$code"
}
leave() { # CODE: end here where the step failed or the script was asked to stop
  [ -n "$stopped" ] || [ "$1" != 0 ] || return 0
  echo "folds.sh: ${stopped:+stopped as asked }in '$doing' (exit code $1). Finished folds are kept; the same command goes on." >&2
  [ -z "$stopped" ] || exit 75
  exit "$1"
}
made() { # FILE SOURCE...: whether it is younger than all it is made of
  local source
  for source in "${@:2}"; do
    [ "$1" -nt "$source" ] || return 1
  done
}

bash "$here/launch/setup.sh"
[ ! -x "$here/.venv/bin/python" ] || export PATH="$here/.venv/bin:$PATH"
box=$(python -c 'import sys
from kits_dist import cli
from kits_dist.config import Config
try:
    print(cli.load(Config, [*sys.argv[1:], "data.store=-", "run=-"]).data.box)
except cli.InputError as error:
    sys.exit(str(error))' ${arguments[@]+"${arguments[@]}"}) || refuse "the arguments above cannot be used"
[ "$box" = body ] || refuse "data.box=$box is phase 2 of a cascade, which is not judged alone; train its folds by hand"
gpus=$(python -c 'import torch; print(torch.cuda.device_count())')
evaluate=(python -m kits_dist.evaluate)
if [ "$gpus" -gt 1 ]; then
  launch=(accelerate launch --config_file "$here/launch/ddp.yaml" --num_processes "$gpus")
  evaluate=("${launch[@]}" -m kits_dist.evaluate)
elif [ "$gpus" = 1 ]; then
  launch=(accelerate launch --config_file "$here/launch/single.yaml")
else
  launch=(accelerate launch --config_file "$here/launch/cpu.yaml")
fi
count=$(python -c 'import json, sys; print(len(json.load(open(sys.argv[1]))["folds"]))' "$store/splits.json" 2>/dev/null) ||
  refuse "store=$store/splits.json cannot be read; prepare the store again"
[ "$count" -gt 1 ] || refuse "store=$store has $count fold, two or more are needed: prepare 3 patients or more"
leave 0

runs=()
for ((fold = 0; fold < count; fold++)); do runs+=("$run/fold_$fold"); done
for ((fold = 0; fold < count; fold++)); do
  step "fold $fold of $count: train" "${launch[@]}" -m kits_dist.train "${arguments[@]}" \
    data.store="$store" data.fold="$fold" run="${runs[fold]}" resume=auto
  # as the network alone paints them: what rules are chosen on
  made "${runs[fold]}/evaluation/val/summary.json" "${runs[fold]}/model.safetensors" ||
    step "fold $fold of $count: its own val cases" "${evaluate[@]}" run="${runs[fold]}" store="$store" split=val postprocess=false
done

weights=("${runs[@]/%//model.safetensors}")
summaries=("${runs[@]/%//evaluation/val/summary.json}")
all="[$(IFS=,; echo "${runs[*]}")]"
made "$run/postprocess.json" "${summaries[@]}" ||
  step "rules of post-processing, out of fold" python -m kits_dist.postprocess run="$all" output="$run" store="$store"
made "$run/evaluation/test_raw/summary.json" "${weights[@]}" ||
  step "test: the mean of $count networks" "${evaluate[@]}" run="$all" store="$store" split=test \
    output="$run/evaluation/test_raw" postprocess=false
made "$run/evaluation/test/summary.json" "${weights[@]}" "$run/postprocess.json" ||
  step "test: after the rules" "${evaluate[@]}" run="$all" store="$store" split=test \
    output="$run/evaluation/test" rules="$run/postprocess.json"
step "all folds" python -m kits_dist.crossval run="$run" store="$store"
python -m kits_dist.report run="$run"
