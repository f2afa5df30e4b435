#!/bin/sh
# Runs inside the virtual machine, as its root: Python with the arguments given, as root and once more as an ordinary user.
#
# virtme-ng's root is the host's, by 9p without a cache: there, importing trio takes a minute. So the host's root is
# mounted once more, with a cache, below an overlay that swallows what is written; that makes it 4 s. It is made the
# root by pivot_root: below a chroot the kernel allows no user namespace.
set -eu
top=$1 kernel=$2 python=$3 out=$4
shift 4
exec 2>"$out/errors"
log() { echo "$*" >>"$out/log"; }
trap 'log "test-vm: the guest could not be set up: $(tail -n 3 "$out/errors")"' EXIT

mkdir -p /run/host /run/vm /run/layers
mount -t tmpfs layers /run/layers
for name in host vm; do
    mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=512000,cache=loose $name /run/$name
done
modprobe -d "/run/vm/$kernel" overlay 2>/dev/null || grep -qw overlay /proc/filesystems
mkdir /run/layers/upper /run/layers/work /run/layers/root
root=/run/layers/root
mount -t overlay overlay "$root" \
    -o "lowerdir=/run/vm/packages/root:/run/host,upperdir=/run/layers/upper,workdir=/run/layers/work"
mkdir -p "$root/lib/modules"
mount --bind "/run/vm/$kernel/lib/modules" "$root/lib/modules"
for name in proc sys dev; do
    mount --rbind "/$name" "$root/$name"
done
case $top in  # a checkout down there is not to be hidden
    /tmp/*) chmod 1777 "$root/tmp" ;;
    *) mount -t tmpfs tmpfs "$root/tmp" ;;
esac
mount -t tmpfs tmpfs "$root/run"
mkdir "$root/run/old" "$root/run/out"
mount --bind "$out" "$root/run/out"
# An ordinary user must be able to reach the interpreter and to write where the tests run.
for path in "$python" "$(readlink -f "$python")" "$top/tests"; do
    while [ "$path" != / ]; do
        path=$(dirname "$path")
        chmod a+x "$root$path"
    done
done
chown 65534 "$root$top"
trap - EXIT

cat >"$root/run/tests.sh" <<'END'
top=$1 python=$2
shift 2
umount -l /run/old
export NSORCH_VM=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
exec >>/run/out/log 2>&1
grep -Ev '^ *(#|$)' "$top/tests/vm/modules" | while read -r module; do
    modprobe "$module" || echo "test-vm: this kernel has no module $module"
done
chmod 666 /dev/net/tun  # as udev does
cd "$top"
status=0
"$python" "$@" || status=$?
if [ "$NSORCH_VM_USERS" = both ]; then
    echo "as an ordinary user (uid 65534):"
    chown -R 65534 .hypothesis 2>/dev/null
    setpriv --reuid 65534 --regid 65534 --clear-groups "$python" "$@" || status=$?
fi
echo "$status" >/run/out/status
END
cd "$root"
exec unshare -m sh -c 'mount --make-rprivate / && pivot_root . run/old && exec sh /run/tests.sh "$@"' sh \
    "$top" "$python" "$@"
