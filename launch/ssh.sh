#!/usr/bin/env bash
# Starts one command on several plain hosts, each as a part of one run:
#
#     launch/ssh.sh "10.0.0.1 10.0.0.2" launch/train_lm.py --config=configs/lm.py:medium --workdir=/shared/run ...
#
# The hosts are as ssh knows them, the first one's name or address as the others know it. Each has this clone under the
# same path (DIRECTORY, this one if not set), with a virtual environment in .venv, and sees the folders under the same
# names. PORT (1234) of the first one has to be open to the others. Ctrl-C stops all after the same update, with a
# checkpoint. ACCELERATOR is gpu, tpu, or none.
set -euo pipefail

if (($# < 2)); then
    echo "usage: launch/ssh.sh \"HOST HOST ...\" SCRIPT [FLAGS]" >&2
    exit 2
fi
read -ra hosts <<<"$1"
shift
directory=${DIRECTORY:-$PWD}
pid_file=/tmp/mgjax-${PORT:-1234}.pid
flags=:
if [[ "${ACCELERATOR:-gpu}" != none ]]; then
    flags=". launch/xla_flags.sh ${ACCELERATOR:-gpu}"
fi

# One that is told to stop stops all. ssh itself hears no Ctrl-C here.
# shellcheck disable=SC2329 # the trap calls it
stop() {
    echo "ssh.sh: tells the run to stop" >&2
    ssh -n -o BatchMode=yes "${hosts[0]}" "kill -TERM \$(cat $pid_file)" || true
}
trap stop INT TERM

pids=()
for i in "${!hosts[@]}"; do
    who=(--coordinator "${hosts[0]}:${PORT:-1234}" --num-processes "${#hosts[@]}" --process-id "$i")
    # With a terminal, what is started there ends with the connection.
    remote="cd $(printf %q "$directory") && . .venv/bin/activate && $flags && \
        { [[ $i != 0 ]] || echo \$\$ >$pid_file; } && exec python $(printf '%q ' "$@" "${who[@]}")"
    ssh -tt -o BatchMode=yes -o ServerAliveInterval=30 "${hosts[i]}" "bash -c $(printf %q "$remote")" \
        </dev/null > >(sed -u "s/^/[$i] /") 2>&1 &
    pids+=($!)
done

status=0 code=0
for pid in "${pids[@]}"; do
    while kill -0 "$pid" 2>/dev/null; do # a signal ends `wait`, not what it waits for
        wait "$pid" && code=0 || code=$?
    done
    ((code == 0)) || status=$code
done
exit "$status"
