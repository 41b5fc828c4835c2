#!/usr/bin/env bash
# Train under SLURM on one node or several, across time limits and preemption. From the checkout, after launch/setup.sh:
#
#   sbatch --nodes=2 --gpus-per-node=8 launch/slurm.sh config=configs/kidney.yaml data.store=DIR run=DIR
#
# The arguments are those of kits_dist.train; resume=auto is added. Every node must be able to access `run` and `data.store`.
# 120 s before the time limit, or on preemption, all ranks stop at the same step and save; the job is requeued and continues from
# there. Nodes without GPUs: PROCESSES_PER_NODE=2 sbatch launch/slurm.sh ... (one process by default).
# Tested on SLURM 22.05 with two nodes without GPUs, 2026-11-28 (tests/integration/test_slurm.py).

# Adapt to the cluster, here (remove the second #) or as options of sbatch:
##SBATCH --partition=gpu
##SBATCH --account=lab
##SBATCH --gpus-per-node=8
##SBATCH --cpus-per-task=64      # shared by all processes on a node
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
[ -n "$run" ] || why="run= is missing: name the folder of this run"
[ -n "${SLURM_JOB_ID:-}" ] || why="must be started by sbatch"
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
  # This script runs on that first node, so a port that is free here is free there.
  port=$(python -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')
  # srun forwards USR1 to each launcher; these make the launcher forward it too, and wait for its ranks to save.
  export PET_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 PET_SHUTDOWN_TIMEOUT=110
  launch=(accelerate launch --config_file launch/multinode.yaml --num_machines "$nodes" --num_processes $((nodes * each)))
  launch+=(--main_process_ip "$address" --main_process_port "$port")
  command=(bash -c 'exec "${@:2:$1}" --machine_rank "$SLURM_NODEID" "${@:$1+2}"' slurm.sh ${#launch[@]} "${launch[@]}")
  command+=(-m kits_dist.train "$@" resume=auto)
fi

ended() { # whether SLURM is ending the job (scancel); if SLURM does not answer, assume not, and save
  local state="" try
  for try in 1 2 3; do
    state=$(squeue --noheader --job "$SLURM_JOB_ID" --format %T) && break
    sleep "$try"
  done
  [ "$state" != RUNNING ] && [ -n "$state" ]
}
asked=""
stop() { # SLURM signals every process of a job that it ends; a second signal would interrupt the saving
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
  wait "$step" || true # a signal to this script also ends the wait
done
wait "$step" && code=0 || code=$? # bash keeps the exit code

again=""
[ ! -e "$run/requeue" ] || again=yes
case $asked$code in
yes0 | yes2) ;;      # finished, or refused its arguments
yes*) again=yes ;;   # ended before it handled signals: there was nothing to save yet
esac
if [ -n "$again" ] && ! ended; then
  echo "slurm.sh: back into the queue"
  scontrol requeue "$SLURM_JOB_ID" || echo "slurm.sh: this cluster does not requeue; submit the same command to continue" >&2
fi
exit "$code"
