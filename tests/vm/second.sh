#!/bin/sh
export PATH=/bin:/usr/bin:/opt HOME=/root
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm /dev/mqueue
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs tmpfs /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
for module in $(cat /etc/modules); do modprobe "$module" || echo "no module $module"; done
hostname vm
ip link set lo up
echo "kernel $(uname -r), booted in $(cut -d' ' -f1 /proc/uptime) s"
if sh /opt/smoke.sh && sh /opt/volumes.sh /dev/vda ext4 && sh /opt/volumes.sh /dev/vdb xfs; then echo CAROB-VM-PASSED; else echo "the script failed with $?"; fi
poweroff -f
