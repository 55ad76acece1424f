#!/bin/sh
# Volumes where the file system has project quotas: sizes are limits, neighbours keep their room, and a restart changes nothing.
# $1 is the disk, $2 its file system.
set -eu
disk=$1 kind=$2 data=/mnt/$2/carob
echo "== volumes on $kind"
# The API server asks nodes for their figures, and no node at a loopback address.
if ! ip link show uplink >/dev/null 2>&1; then
    ip link add uplink type bridge
    ip addr add 192.0.2.7/24 dev uplink
    ip link set uplink up
    ip route add default dev uplink
fi
mkdir -p "/mnt/$kind"
mount -t "$kind" -o prjquota "$disk" "/mnt/$kind"
expect() {
    if [ "$2" != "$3" ]; then echo "$1: expected '$3', found '$2'"; exit 1; fi
    echo "ok: $1 is $2"
}
start() {
    carob server --data-dir "$data" --run-dir /run/carob-volumes --eviction-hard= > /var/volumes.out 2>> /var/volumes.log &
    server=$!
    while ! grep -q ready /var/volumes.out; do
        kill -0 "$server" || { cat /var/volumes.out; exit 1; }
        sleep 0.2
    done
}
trap 'echo "== the server said"; tail -n 40 /var/volumes.log' EXIT
carob check --data-dir "$data" | grep -q "has project quotas"
start
export KUBECONFIG=$data/admin.kubeconfig
CAROB_DATA_DIR=$data CAROB_RUN_DIR=/run/carob-volumes carob image import /opt/busybox.tar

# name, size, dataSource as JSON
user() {
    kubectl apply -f - <<POD
{"apiVersion": "v1", "kind": "List", "items": [
{"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "$1"}, "spec": {"accessModes": ["ReadWriteOnce"],
 "resources": {"requests": {"storage": "$2"}}, "dataSource": ${3:-null}}},
{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "$1"}, "spec": {"terminationGracePeriodSeconds": 0,
 "containers": [{"name": "main", "image": "busybox:1.28", "command": ["sleep", "3600"],
  "volumeMounts": [{"name": "data", "mountPath": "/data"}]}],
 "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "$1"}}]}}]}
POD
    kubectl wait --for=condition=Ready "pod/$1" --timeout=300s
}
fill() { kubectl exec "$1" -- sh -c "dd if=/dev/zero of=/data/$2 bs=1M count=$3 2>&1" || true; }
room() { kubectl exec "$1" -- df -k /data | awk 'END {print $(NF-4)}'; }

user greedy 8Mi
user neighbour 8Mi
expect "the room that a container sees, in KiB" "$(room greedy)" 8192
fill greedy big 16 | grep -q -i -E "no space|quota" || { echo "16 MiB went into 8"; exit 1; }
echo "ok: a volume takes no more than its size"
used=$(kubectl exec greedy -- du -sk /data | cut -f1)
[ "$used" -le 8192 ] || { echo "$used KiB are in a volume of 8192"; exit 1; }
expect "what a neighbour can write" "$(fill neighbour file 6 | grep -c "6+0 records out")" 1
node=$(kubectl get node -o jsonpath='{.items[0].metadata.name}')
stats=$(kubectl get --raw "/api/v1/nodes/$node/proxy/stats/summary" | tr -d ' \n' | grep -o '"capacityBytes":8388608' | wc -l)
expect "volumes whose size is in the summary" "$stats" 2

echo "== growth, a restart, and the end"
kubectl patch pvc greedy -p '{"spec": {"resources": {"requests": {"storage": "12Mi"}}}}'
kubectl wait --for=jsonpath='{.status.capacity.storage}'=12Mi pvc/greedy --timeout=120s
expect "the room after growth" "$(room greedy)" 12288
kill -9 "$server"; wait "$server" || true
start
expect "the room after a restart" "$(room greedy)" 12288
user copy 12Mi '{"kind": "PersistentVolumeClaim", "name": "greedy"}'
expect "the room of a copy" "$(room copy)" 12288
expect "what is on a copy" "$(kubectl exec copy -- md5sum /data/big | cut -d' ' -f1)" "$(kubectl exec greedy -- md5sum /data/big | cut -d' ' -f1)"
fill copy more 16 | grep -q -i -E "no space|quota" || { echo "a copy takes more than its size"; exit 1; }
kubectl delete pod,pvc --all --timeout=120s
for try in $(seq 100); do [ "$(kubectl get pv -o name | wc -l)" = 0 ] && break; sleep 0.2; done
expect "what is left of volumes" "$(ls -A "$data/volumes")" id
kill "$server"; wait "$server" || true
trap - EXIT
umount -l "/mnt/$kind"
