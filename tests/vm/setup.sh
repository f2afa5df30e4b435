#!/bin/sh
# Makes what `make test-vm` boots, once, below .vm/ of the checkout: virtme-ng in a virtual environment of its own, and
# a Debian kernel of each series asked for, unpacked and never installed: its image, and the modules that a network
# needs. Ends with 77 and one line that says why where it can't.
#
#   tests/vm/setup.sh 6.1 6.12
set -eu
top=$(cd "$(dirname "$0")/../.." && pwd)
vm=$top/.vm
# For the host: the emulator, and what virtme-ng makes its initramfs with.
tools="qemu-system-x86_64 busybox depmod file xz"
tool_packages="qemu-system-x86 busybox-static kmod file xz-utils"

cannot() {
    echo "test-vm: no virtual machine here: $*" >&2
    exit 77
}

missing() {
    for tool in $tools; do
        PATH=$PATH:/sbin:/usr/sbin command -v "$tool" >/dev/null || printf '%s ' "$tool"
    done
}

update() {
    [ -e "$vm/updated" ] || apt-get -q update >"$vm/apt.log" 2>&1 || cannot "apt-get update failed, see $vm/apt.log"
    touch "$vm/updated"
}

# The newest kernel package of a series, such as linux-image-6.1.0-50-amd64.
newest() {
    apt-cache search --names-only "^linux-image-$(echo "$1" | sed 's/\./\\./')\\.[0-9].*-amd64\$" | cut -d' ' -f1 |
        grep -Ev -e '-(cloud|rt)-amd64$' | sort -V | tail -1
}

kernel() {
    place=$vm/$1
    [ ! -e "$place/complete" ] || return 0
    update
    package=$(newest "$1")
    if [ -z "$package" ]; then
        echo "test-vm: there is no kernel $1 among this machine's package sources" >&2
        return 0
    fi
    echo "test-vm: unpacking $package" >&2
    rm -rf "$place"
    mkdir -p "$place/deb"
    (cd "$place/deb" && apt-get -q -o APT::Sandbox::User=root download "$package" >"$vm/apt.log" 2>&1) ||
        cannot "$package can't be downloaded, see $vm/apt.log"
    dpkg-deb -x "$place"/deb/*.deb "$place"
    rm -r "$place/deb" "$place/usr"
    version=$(ls "$place/lib/modules")
    modules=$place/lib/modules/$version/kernel
    # Of 4,000 modules these can matter; each takes time to unpack and to look through.
    find "$modules/drivers" -mindepth 1 -maxdepth 1 ! -name net ! -name virtio ! -name block ! -name char \
        -exec rm -r {} +
    rm -rf "$modules/sound" "$modules/drivers/net/ethernet" "$modules/drivers/net/wireless"
    find "$modules" -name '*.ko.xz' -exec xz -d -T1 {} +  # the initramfs loads plain ones only
    PATH=$PATH:/sbin:/usr/sbin depmod -b "$place" "$version"
    touch "$place/complete"
}

# Programs that tests use inside: unpacked, and seen by the guest alone.
packages() {
    wanted=$(grep -Ev '^ *(#|$)' "$top/tests/vm/packages")
    [ "$(cat "$vm/packages/complete" 2>/dev/null)" != "$wanted" ] || return 0
    update
    rm -rf "$vm/packages"
    mkdir -p "$vm/packages/deb/partial" "$vm/packages/root/usr"
    for name in bin sbin lib lib64; do  # as Debian has them, so that nothing hides those of the root below
        mkdir "$vm/packages/root/usr/$name"
        ln -s "usr/$name" "$vm/packages/root/$name"
    done
    # shellcheck disable=SC2086 - they are words
    apt-get -q -y -o Debug::NoLocking=1 -o APT::Sandbox::User=root -o Dir::Cache::archives="$vm/packages/deb" \
        install --reinstall --download-only --no-install-recommends $wanted >"$vm/apt.log" 2>&1 ||
        cannot "the guest's packages can't be downloaded, see $vm/apt.log"
    for package in "$vm"/packages/deb/*.deb; do
        dpkg-deb --fsys-tarfile "$package" | tar -x --keep-directory-symlink -C "$vm/packages/root"
    done
    rm -r "$vm/packages/deb"
    echo "$wanted" >"$vm/packages/complete"
}

mkdir -p "$vm"
rm -f "$vm/updated"
[ "$(uname -m)" = x86_64 ] || cannot "it is made for x86-64, not $(uname -m)"
command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || cannot "it takes Debian's kernels, by apt-get"
if [ -n "$(missing)" ]; then
    [ "$(id -u)" = 0 ] || cannot "there is no $(missing): apt-get install $tool_packages"
    update
    echo "test-vm: installing $tool_packages" >&2
    # shellcheck disable=SC2086 - they are words
    DEBIAN_FRONTEND=noninteractive apt-get -q -y install --no-install-recommends $tool_packages >"$vm/apt.log" 2>&1 ||
        cannot "the packages $tool_packages can't be installed, see $vm/apt.log"
fi
if [ ! -x "$vm/venv/bin/virtme-run" ]; then
    "$top/.venv/bin/python" -m venv "$vm/venv"
    "$vm/venv/bin/python" -m pip --disable-pip-version-check -q install "virtme-ng>=1.33" ||
        cannot "virtme-ng can't be installed by pip"
fi
packages
for series in "$@"; do
    kernel "$series"
done
for series in "$@"; do
    [ ! -e "$vm/$series/complete" ] || exit 0
done
cannot "none of the kernels $* can be had"
