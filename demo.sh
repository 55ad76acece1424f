#!/usr/bin/env bash
# Builds carob, starts a server, runs the notes' Pod of two containers on it with kubectl, and shows what a Pod is.
# The server ends with this script, unless --keep is given.
set -euo pipefail
cd "$(dirname "$0")"
keep=${1:-}
step() { printf '\n\033[1m== %s\033[0m\n' "$*"; }
show() { printf '\033[2m$ %s\033[0m\n' "$*"; "$@"; }

step "set-up"
./setup.sh
step "build carob (a few minutes the first time)"
cargo xtask dist
carob=$PWD/target/x86_64-unknown-linux-gnu/release/carob
ls -lh "$carob" | awk '{print "one static binary of " $5}'
step "make the images nginx and debian from Debian's packages"
cargo xtask images nginx debian

state=$PWD/target/demo
export CAROB_DATA_DIR=$state/data CAROB_RUN_DIR=/run/carob-demo KUBECONFIG=$state/data/admin.kubeconfig
mkdir -p "$state"
# Whether the server of this script runs; its number may be another program's since.
running() { [ -f "$state/pid" ] && [ "$(cat "/proc/$(cat "$state/pid")/comm" 2>/dev/null)" = carob ]; }
step "start a server"
if running; then
    echo "the server of the last run is still there"
else
    : > "$state/out"
    "$carob" server --https-listen-port 16443 --kubelet-port 20250 >"$state/out" 2>"$state/log" &
    echo $! > "$state/pid"
    until grep -q ready "$state/out"; do
        kill -0 "$(cat "$state/pid")" 2>/dev/null || { cat "$state/log"; exit 1; }
        sleep 0.05
    done
    cat "$state/out"
fi
finish() {
    if [ "$keep" = --keep ]; then
        printf '\nThe server goes on. To use it:\n  export KUBECONFIG=%s\nTo end it: kubectl delete pod --all; kill %s\n' "$KUBECONFIG" "$(cat "$state/pid")"
    else
        kubectl delete pod --all --timeout=60s >/dev/null 2>&1 || true
        if running; then kill "$(cat "$state/pid")"; fi
        while running; do sleep 0.05; done
        rm -f "$state/pid"
    fi
}
trap finish EXIT

show "$carob" image import target/images/nginx.tar target/images/debian.tar
step "a Pod of two containers that share a directory"
kubectl delete pod two-containers --ignore-not-found --timeout=60s
cat manifests/two-containers.yaml
show kubectl apply -f manifests/two-containers.yaml
show kubectl wait --timeout=60s pod/two-containers \
    --for='jsonpath={.status.containerStatuses[?(@.name=="debian-container")].state.terminated.reason}=Completed' ||
    { show "$carob" why pod/two-containers; exit 1; }
show kubectl get pod two-containers -o wide
step "the page that the debian container wrote, served by the nginx container"
address=$(kubectl get pod two-containers -o jsonpath='{.status.podIP}')
# nginx runs, which is not to say that it listens already.
show curl --silent --show-error --retry 30 --retry-connrefused --retry-delay 1 "http://$address/"
step "the Pod as a process group"
show "$carob" tree two-containers
