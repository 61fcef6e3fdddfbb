#!/bin/busybox sh
# Process 1: makes the machine a node's, then runs the commands that come over the port, one a line, and ends with the
# line "reboot". Each command's output goes back, and after it a line with its exit status.
export PATH=/usr/sbin:/usr/bin HOME=/root
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs tmpfs /tmp
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount --make-rshared /
ln -sf /proc/self/mounts /etc/mtab
echo "127.0.0.1 localhost" >/etc/hosts
hostname guest
ip link set lo up
modprobe -a virtio_console 9p 9pnet_virtio

for port in /sys/class/virtio-ports/*; do
    [ "$(cat "$port/name")" = keelson.agent ] && device=/dev/${port##*/}
done
exec 3<>"$device"
printf 'ready\n' >&3
while IFS= read -r command <&3 && [ "$command" != reboot ]; do
    sh -c "$command" </dev/null >&3 2>&1 3>&-
    printf '\001%d\n' "$?" >&3
done

kill -KILL -1
sync
umount -a -r
reboot -f
