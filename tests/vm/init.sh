#!/bin/busybox sh
# First life, on the initramfs: pivot_root(2) does not work there, so all moves to a tmpfs.
/bin/busybox mkdir -p /new
/bin/busybox mount -t tmpfs -o size=90% tmpfs /new
/bin/busybox cp -a /bin /etc /lib /opt /usr /second /new/
/bin/busybox mkdir -p /new/proc /new/sys /new/dev /new/tmp /new/run /new/var /new/root
exec /bin/busybox switch_root /new /second
