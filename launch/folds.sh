#!/usr/bin/env bash
# Cross-validate: train every fold of a store, score each case with the network that was not trained on it, choose the
# post-processing on all of those predictions, and test the ensemble of the networks.
#
#   bash launch/folds.sh store=DIR run=DIR [config=configs/kidney.yaml] [key=value ...]
#
# The other arguments are those of kits_dist.train. run= receives fold_0, fold_1, ... (one per fold of the store), evaluation/,
# postprocess.json and report.html. After an interruption or a failure, the same command continues with the first unfinished step.
# Tested on 2 cores without a GPU.
set -euo pipefail
set -m # each step is its own process group: a signal to this script, or Ctrl-C, reaches it once, through stop
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
  data.store=* | data.fold=* | resume=*) refuse "$word is set by this script for every fold; leave it out" ;;
  *=*) arguments+=("$word") ;;
  *) refuse "'$word' is not an argument; arguments are key=value" ;;
  esac
done
[ -n "$store" ] || refuse "store= is missing: name a folder written by kits_dist.prepare"
[ -n "$run" ] || refuse "run= is missing: name the folder for all folds"
[ -f "$store/splits.json" ] || refuse "store=$store holds no splits.json: name a folder written by kits_dist.prepare"
case $run in *,*) refuse "run=$run holds a comma, which separates runs" ;; esac

doing="set up" child="" stopped=""
stop() { # TERM to the whole group: unlike INT it is not ignored by background jobs, and training ranks save at the same step
  stopped=yes
  [ -z "$child" ] || kill -TERM -- "-$child" 2>/dev/null || true
}
trap stop INT TERM HUP
export PET_SHUTDOWN_TIMEOUT=110 # seconds for which a launcher waits for its ranks to save
step() { # TITLE COMMAND...: run the command; exit with its code if it fails
  doing=$1
  printf '\n== %s\n' "$doing"
  "${@:2}" </dev/null &
  child=$!
  local code=0
  wait "$child" || code=$? # a signal to this script also ends the wait
  while [ -n "$stopped" ] && kill -0 -- "-$child" 2>/dev/null; do sleep 0.5; done
  child=""
  leave "$code"
}
leave() { # CODE: exit if the step failed or the script was asked to stop
  [ -n "$stopped" ] || [ "$1" != 0 ] || return 0
  echo "folds.sh: ${stopped:+stopped as asked }in '$doing' (exit code $1). Finished folds are kept; run the same command to continue." >&2
  [ -z "$stopped" ] || exit 75
  exit "$1"
}
made() { # FILE SOURCE...: whether the file is newer than everything it was made from
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
[ "$box" = body ] || refuse "data.box=$box is phase 2 of a cascade, which cannot be evaluated alone; train its folds one by one"
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
[ "$count" -gt 1 ] || refuse "store=$store has $count fold but two or more are needed: prepare three patients or more"
leave 0

runs=()
for ((fold = 0; fold < count; fold++)); do runs+=("$run/fold_$fold"); done
for ((fold = 0; fold < count; fold++)); do
  step "fold $fold of $count: train" "${launch[@]}" -m kits_dist.train "${arguments[@]}" \
    data.store="$store" data.fold="$fold" run="${runs[fold]}" resume=auto
  # without post-processing: the rules are chosen on these predictions
  made "${runs[fold]}/evaluation/val/summary.json" "${runs[fold]}/model.safetensors" ||
    step "fold $fold of $count: evaluate its validation cases" "${evaluate[@]}" run="${runs[fold]}" store="$store" split=val postprocess=false
done

weights=("${runs[@]/%//model.safetensors}")
summaries=("${runs[@]/%//evaluation/val/summary.json}")
all="[$(IFS=,; echo "${runs[*]}")]"
made "$run/postprocess.json" "${summaries[@]}" ||
  step "post-processing, chosen out of fold" python -m kits_dist.postprocess run="$all" output="$run" store="$store"
made "$run/evaluation/test_raw/summary.json" "${weights[@]}" ||
  step "test: ensemble of $count networks" "${evaluate[@]}" run="$all" store="$store" split=test \
    output="$run/evaluation/test_raw" postprocess=false
if ! made "$run/evaluation/test/summary.json" "${weights[@]}" "$run/postprocess.json"; then
  if grep -q '"rules": {}' "$run/postprocess.json"; then # the label maps are those without rules
    rm -rf "$run/evaluation/test" "$run/evaluation/.test.part"
    cp -r "$run/evaluation/test_raw" "$run/evaluation/.test.part"
    mv "$run/evaluation/.test.part" "$run/evaluation/test"
  else
    step "test: ensemble and post-processing" "${evaluate[@]}" run="$all" store="$store" split=test \
      output="$run/evaluation/test" rules="$run/postprocess.json"
  fi
fi
step "all folds" python -m kits_dist.crossval run="$run" store="$store"
python -m kits_dist.report run="$run"
