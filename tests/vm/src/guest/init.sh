#!/bin/busybox sh
# The initramfs: finds the root's disk and goes there. The modules stand in the order in which they are loaded.
export PATH=/bin
busybox mkdir -p /dev /proc /root
busybox mount -t proc proc /proc
busybox --install -s /bin
mount -t devtmpfs devtmpfs /dev
for module in /modules/*; do
    insmod "$module" || echo "failed to load $module"
done
mount -t ext4 /dev/vda /root || poweroff -f
mkdir -p /root/dev /root/proc /root/sys /root/run /root/tmp /root/root
mount --move /dev /root/dev
umount /proc
cp /agent /root/agent
exec switch_root /root /agent
