#!/bin/sh
# Runs a command that makes interfaces, mounts and processes where it can't touch the host's, and that must not set the
# machine's limits, which have no namespaces.
set -eu
mount -t tmpfs tmpfs /run
mount -t sysfs sysfs /sys 2>/dev/null || true
mount --bind /proc/sys /proc/sys
mount -o remount,ro,bind /proc/sys
mount --bind /proc/sys/net /proc/sys/net
mount -o remount,rw,bind /proc/sys/net
ip link set lo up
exec "$@"
