#!/bin/sh
# What a Pod must be on cgroup v2: its limits in force, its isolation whole, exec, and a clean end.
set -eu
# Before the server: a node says what it has when it registers.
echo 8 > /proc/sys/vm/nr_hugepages
echo "== server"
carob server --data-dir /var/carob --run-dir /run/carob > /var/server.out 2> /var/server.log &
server=$!
trap 'echo "== the server said"; tail -n 60 /var/server.log' EXIT
while ! grep -q ready /var/server.out; do
    kill -0 "$server" || { cat /var/server.out; exit 1; }
    sleep 0.2
done
cat /var/server.out
export KUBECONFIG=/var/carob/admin.kubeconfig
CAROB_DATA_DIR=/var/carob carob image import /opt/busybox.tar

echo "== a Pod with limits"
kubectl apply -f - <<'POD'
apiVersion: v1
kind: Pod
metadata:
  name: limited
spec:
  terminationGracePeriodSeconds: 2
  containers:
  - name: main
    image: busybox:1.28
    command: ["sh", "-c", "trap 'exit 0' TERM; while true; do sleep 1; done"]
    resources:
      requests: {cpu: 100m, memory: 32Mi}
      limits: {cpu: 200m, memory: 64Mi}
    securityContext:
      seccompProfile: {type: RuntimeDefault}
POD
kubectl wait --for=condition=Ready pod/limited --timeout=300s

inside() { kubectl exec limited -- sh -c "$1"; }
expect() {
    if [ "$2" != "$3" ]; then echo "$1: expected '$3', found '$2'"; exit 1; fi
    echo "ok: $1 is $2"
}
expect "memory.max" "$(inside 'cat /sys/fs/cgroup/memory.max')" 67108864
expect "cpu.max" "$(inside 'cat /sys/fs/cgroup/cpu.max')" "20000 100000"
expect "seccomp mode" "$(inside 'grep ^Seccomp: /proc/self/status | tr -d "[:space:]"')" "Seccomp:2"
expect "a forbidden system call" "$(inside 'unshare -r true 2>/dev/null && echo allowed || echo refused')" refused
expect "a disk's device" "$(inside 'mknod /tmp/disk b 8 0 2>/dev/null && cat /tmp/disk >/dev/null 2>&1 && echo open || echo refused')" refused
expect "a usual device" "$(inside 'head -c 4 /dev/zero | wc -c | tr -d "[:space:]"')" 4
expect "an exit code" "$(inside 'exit 7' 2>/dev/null; echo $?)" 7

echo "== huge pages"
kubectl apply -f - <<'POD'
apiVersion: v1
kind: Pod
metadata:
  name: paged
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: busybox:1.28
    command: ["sleep", "infinity"]
    resources: {limits: {memory: 64Mi, hugepages-2Mi: 4Mi}}
    volumeMounts: [{name: pages, mountPath: /pages}]
  volumes: [{name: pages, emptyDir: {medium: HugePages}}]
POD
kubectl wait --for=condition=Ready pod/paged --timeout=300s || { kubectl describe pod paged; exit 1; }
paged() { kubectl exec paged -- sh -c "$1"; }
expect "hugetlb.2MB.max" "$(paged 'cat /sys/fs/cgroup/hugetlb.2MB.max')" 4194304
expect "hugetlb.2MB.max of a Pod that asks for none" "$(inside 'cat /sys/fs/cgroup/hugetlb.2MB.max')" 0
expect "as many huge pages as asked for" "$(paged 'fallocate -l 4194304 /pages/all && echo made')" made
expect "one more" "$(paged 'fallocate -l 2097152 /pages/more 2>/dev/null && echo made || echo refused')" refused

echo "== a container that needs more than its limit"
kubectl apply -f - <<'POD'
apiVersion: v1
kind: Pod
metadata:
  name: greedy
spec:
  restartPolicy: Never
  containers:
  - name: main
    image: busybox:1.28
    command: ["tail", "/dev/zero"]
    resources: {limits: {memory: 32Mi}}
POD
kubectl wait --for=jsonpath='{.status.phase}'=Failed pod/greedy --timeout=300s || { kubectl describe pod greedy; exit 1; }
kubectl get pod greedy

echo "== the end"
kubectl delete pod limited paged greedy --timeout=120s
left=$(find /sys/fs/cgroup -type d -path '*/kubepods/*/pod*' | wc -l)
expect "cgroups of Pods" "$left" 0

# The next script's server takes its place.
kill -INT "$server"
wait "$server" || { echo "the server ended with $?"; exit 1; }
