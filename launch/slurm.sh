#!/usr/bin/env bash
# Trains, or makes music for a file of prompts, on the GPUs of several nodes of a Slurm cluster:
#
#     sbatch --nodes=4 launch/slurm.sh launch/train_lm.py --config=configs/lm.py:medium --workdir=/shared/run ...
#
# from the top of a clone that all nodes see, with the virtual environment in .venv (or active). One process for each
# GPU; --ntasks-per-node=1 gives one process for each node, which takes all of its GPUs. Both are found out.
#
# Before the time is over, or when the node is wanted back, the run gets SIGTERM: it writes a checkpoint, ends with status
# 75, and the job is queued again. So it is where a node was lost. `scancel --signal=TERM JOB` stops and queues it
# likewise; `scancel JOB` ends it.
#SBATCH --job-name=mgjax
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=mgjax-%j.log
set -uo pipefail

readonly MOST_RESTARTS=50

if [[ -z "${VIRTUAL_ENV:-}" && -f .venv/bin/activate ]]; then
    # shellcheck source=/dev/null
    . .venv/bin/activate
fi
. launch/xla_flags.sh gpu || exit

# All GPUs of a node are seen by all of its tasks: NCCL talks between them directly then. One that fails ends the others.
srun --kill-on-bad-exit=1 --gpu-bind=none --cpu-bind=cores python "$@"
status=$?

# 0 is done and 2 is an error that only a person can mend; anything else is worth another try.
if ((status != 0 && status != 2 && ${SLURM_RESTART_COUNT:-0} < MOST_RESTARTS)); then
    echo "mgjax: ended with status $status; job $SLURM_JOB_ID is queued again" >&2
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
