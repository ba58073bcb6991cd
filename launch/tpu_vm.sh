#!/usr/bin/env bash
# A slice of TPU VMs, or several, from the queue to the results:
#
#     export NAME=mgjax ZONE=us-central1-a TYPE=v5litepod-16 RUNTIME=v2-alpha-tpuv5-lite SHARE=10.1.2.3:/share
#     launch/tpu_vm.sh create                # asks for them and waits; SPOT=1 for cheaper ones that may be taken back
#     launch/tpu_vm.sh install               # this clone, its dependencies and the share, on all hosts
#     launch/tpu_vm.sh run launch/train_lm.py --config=configs/lm.py:medium --workdir=/share/run ...
#     launch/tpu_vm.sh logs                  # of all hosts, as they come
#     launch/tpu_vm.sh stop                  # SIGTERM: a checkpoint is written, and `run` with the same words goes on
#     launch/tpu_vm.sh fetch /share/run/best results
#     launch/tpu_vm.sh delete                # they cost money until then
#
# SHARE is an NFS server (Filestore) that the hosts can reach, mounted as /share: corpora, checkpoints and results have
# to be where all hosts see them. SLICES=2 asks for two slices, which find each other by themselves.
set -euo pipefail

: "${NAME:?name of the TPU}" "${ZONE:?zone, such as us-central1-a}"
slices=${SLICES:-1}
nodes=("$NAME")
if ((slices > 1)); then
    nodes=()
    for ((i = 0; i < slices; i++)); do nodes+=("$NAME-$i"); done
fi

# Runs a command on all hosts of all slices.
everywhere() {
    local pids=() node pid
    for node in "${nodes[@]}"; do
        gcloud compute tpus tpu-vm ssh "$node" --zone "$ZONE" --worker=all --command="$1" &
        pids+=($!)
    done
    for pid in "${pids[@]}"; do wait "$pid"; done
}

create() {
    : "${TYPE:?such as v5litepod-16}" "${RUNTIME:?such as v2-alpha-tpuv5-lite}"
    local which=(--node-id "$NAME") more=()
    if ((slices > 1)); then which=(--node-count "$slices" --node-prefix "$NAME"); fi
    if [[ -n "${SPOT:-}" ]]; then more=(--spot); fi
    gcloud compute tpus queued-resources create "$NAME" --zone "$ZONE" "${which[@]}" "${more[@]}" \
        --accelerator-type "$TYPE" --runtime-version "$RUNTIME"
    local state=
    until [[ "$state" == ACTIVE ]]; do
        sleep 30
        state=$(gcloud compute tpus queued-resources describe "$NAME" --zone "$ZONE" --format='value(state.state)')
        echo "$(date +%H:%M) $state" >&2
        case "$state" in FAILED | SUSPENDED | DELETING) exit 1 ;; esac
    done
}

install() {
    local archive node
    archive=$(mktemp --suffix .tar)
    git archive --prefix mgjax/ --output "$archive" HEAD # what is committed
    for node in "${nodes[@]}"; do
        gcloud compute tpus tpu-vm scp "$archive" "$node":mgjax.tar --zone "$ZONE" --worker=all
    done
    rm "$archive"
    # uv, because the Python of these machines is too old.
    everywhere "tar -xf mgjax.tar && cd mgjax && python3 -m pip install -q --user uv && \
        python3 -m uv venv -q --clear --python 3.12 .venv && python3 -m uv pip install -q -e '.[tpu,train]'"
    if [[ -n "${SHARE:-}" ]]; then
        everywhere "sudo apt-get install -qy nfs-common && sudo mkdir -p /share && { mountpoint -q /share || \
            sudo mount -t nfs -o hard $SHARE /share; }"
    fi
}

run() {
    local command
    command="launch/restart.sh python $(printf '%q ' "$@")"
    everywhere "cd mgjax && . .venv/bin/activate && . launch/xla_flags.sh tpu && \
        { setsid nohup $command >~/mgjax.log 2>&1 </dev/null & echo \$! >~/mgjax.pid; }"
}

case "${1:-}" in
create) create ;;
install) install ;;
run) shift && run "$@" ;;
logs) everywhere "tail -n 30 -F ~/mgjax.log" ;;
stop) everywhere "kill -TERM \$(cat ~/mgjax.pid)" ;;
fetch) gcloud compute tpus tpu-vm scp --recurse "${nodes[0]}:$2" "$3" --zone "$ZONE" --worker=0 ;;
delete) gcloud compute tpus queued-resources delete "$NAME" --zone "$ZONE" --force --quiet ;;
*)
    sed -n '2,15s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
