#!/usr/bin/env bash
# Train under SLURM on one node or many; time limits and preemption are survived. From the checkout, after launch/setup.sh:
#
#   sbatch --nodes=2 --gpus-per-node=8 launch/slurm.sh config=configs/kidney.yaml data.store=DIR run=DIR
#
# The arguments are those of kits_dist.train; resume=auto is added. `run` and `data.store` lie where every node sees them.
# 120 s before the time limit, or when preempted, all processes stop at the same step and save; the job goes back into
# the queue and continues from there. Without GPUs: PROCESSES_PER_NODE=2 sbatch launch/slurm.sh ... (one by default).
# Tried 2026-11-28 on SLURM 22.05, two nodes without GPUs, preempted by a job of higher priority (tests/integration/test_slurm.py).

# Change to fit the cluster, here (without the second #) or as options of sbatch:
##SBATCH --partition=gpu
##SBATCH --account=lab
##SBATCH --gpus-per-node=8
##SBATCH --cpus-per-task=64      # shared by all processes of a node
##SBATCH --time=1-00:00:00
#SBATCH --job-name=kits_dist
#SBATCH --output=slurm-%j.log
#SBATCH --open-mode=append
#SBATCH --ntasks-per-node=1      # the launcher; it starts one process per GPU
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
set -euo pipefail

run=""
for word in "$@"; do
  case $word in run=?*) run=${word#run=} ;; esac
done
why=""
[ -f launch/multinode.yaml ] || why="$PWD is not the checkout: cd there first"
[ -n "$run" ] || why="run= is missing: the folder of this run"
[ -n "${SLURM_JOB_ID:-}" ] || why="is started by sbatch"
if [ -n "$why" ]; then
  echo "slurm.sh: $why. Example: sbatch --nodes=2 --gpus-per-node=8 launch/slurm.sh config=configs/kidney.yaml data.store=DIR run=DIR" >&2
  exit 2
fi
[ ! -x .venv/bin/python ] || export PATH="$PWD/.venv/bin:$PATH"

nodes=$SLURM_JOB_NUM_NODES
each=${PROCESSES_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}
if [ $((nodes * each)) = 1 ]; then
  command=(python -m kits_dist.train "$@" resume=auto)
else
  first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
  address=$(scontrol --oneliner show node "$first" | grep -o ' NodeAddr=[^ ]*' | cut -d= -f2)
  # this script runs on that first node
  port=$(python -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')
  # srun hands USR1 to each launcher; these lines make a launcher hand it on, and wait for its ranks to save
  export PET_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 PET_SHUTDOWN_TIMEOUT=110
  launch=(accelerate launch --config_file launch/multinode.yaml --num_machines "$nodes" --num_processes $((nodes * each)))
  launch+=(--main_process_ip "$address" --main_process_port "$port")
  command=(bash -c 'exec "${@:2:$1}" --machine_rank "$SLURM_NODEID" "${@:$1+2}"' slurm.sh ${#launch[@]} "${launch[@]}")
  command+=(-m kits_dist.train "$@" resume=auto)
fi

ended() { # whether SLURM itself ends the job (scancel); where it does not answer, work matters more than a cut-short end
  local state="" try
  for try in 1 2 3; do
    state=$(squeue --noheader --job "$SLURM_JOB_ID" --format %T) && break
    sleep "$try"
  done
  [ "$state" != RUNNING ] && [ -n "$state" ]
}
asked=""
stop() { # what SLURM ends it has signalled as a whole; a second signal would cut the saving short
  ! ended || return 0
  asked=yes
  kill -USR1 "$step"
}
trap stop USR1 TERM

rm -f "$run/requeue"
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-$SLURM_CPUS_ON_NODE}
echo "slurm.sh: job $SLURM_JOB_ID, start ${SLURM_RESTART_COUNT:-0}, $nodes nodes x $each processes: $SLURM_JOB_NODELIST"
srun --ntasks="$nodes" --ntasks-per-node=1 "${command[@]}" &
step=$!
while kill -0 "$step" 2>/dev/null; do
  wait "$step" || true # also ended by a signal to this script
done
wait "$step" && code=0 || code=$? # bash remembers how it ended

again=""
[ ! -e "$run/requeue" ] || again=yes
case $asked$code in
yes0 | yes2) ;;      # finished all the same, or refused what it was given
yes*) again=yes ;;   # ended before it listened to signals: there was nothing to save yet
esac
if [ -n "$again" ] && ! ended; then
  echo "slurm.sh: back into the queue"
  scontrol requeue "$SLURM_JOB_ID" || echo "slurm.sh: no requeue here; the same sbatch command goes on from there" >&2
fi
exit "$code"
