#!/usr/bin/env bash
# Runs a command, and again where it fails, until it is done:
#
#     launch/restart.sh python launch/train_lm.py --config=configs/lm.py:medium --workdir=gs://my-bucket/run ...
#
# Status 0 is done, 2 a mistake in the command or the data: both end it. After 75, a run that was stopped, it is run again
# at once; after any other, in 10 seconds, then 20, and so on up to 10 minutes. A run of half an hour resets that. SIGTERM
# is handed on, and ends it when the command has ended.
set -uo pipefail

first=${RESTART_PAUSE:-10} most=600 long=1800 # seconds
pause=$first stopping= child=

stop() {
    stopping=1
    if [[ -n "$child" ]]; then kill -TERM "$child" 2>/dev/null; fi
}
trap stop TERM INT

while :; do
    begun=$SECONDS
    "$@" &
    child=$!
    if [[ -n "$stopping" ]]; then kill -TERM "$child"; fi # between the two lines above
    while :; do # a signal interrupts the waiting
        wait "$child"
        status=$?
        kill -0 "$child" 2>/dev/null || break
    done
    child=
    if [[ -n "$stopping" || $status == 0 || $status == 2 ]]; then exit "$status"; fi
    if ((SECONDS - begun >= long)); then pause=$first; fi
    if [[ $status == 75 ]]; then
        echo "restart: it was stopped, and is run again" >&2
        continue
    fi
    echo "restart: it ended with status $status, and is run again in $pause s" >&2
    for ((i = 0; i < pause; i++)); do
        sleep 1
        if [[ -n "$stopping" ]]; then exit "$status"; fi
    done
    pause=$((pause * 2 < most ? pause * 2 : most))
done
