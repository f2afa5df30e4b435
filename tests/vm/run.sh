#!/usr/bin/env bash
# make test-vm: boots Debian kernels under QEMU, and runs the tests marked vm inside. Each kernel is one run, as root
# and as an ordinary user. Without a virtual machine it ends with 77, and a line that says why.
#
#   VM_KERNELS="6.1 6.12"   the kernels
#   VM_TESTS="-x tests/test_net.py"   instead of all test files with such tests: arguments of pytest
#   VM_COMMAND="-m bench.fidelity"    instead of tests: arguments of Python
#   VM_USERS="both"         or "root"
#   VM_KVM=1                with hardware acceleration: ten times as fast, where it works
#   VM_MINUTES=40           a run that takes longer has failed
set -uo pipefail
top=$(cd "$(dirname "$0")/../.." && pwd)
vm=$top/.vm
kernels=${VM_KERNELS:-6.1 6.12}
python=$top/.venv/bin/python
# Bash hears a signal while it waits, not while a command runs. What it begins is a process group each, from its fork on.
set -m
trap 'for group in $(jobs -p); do kill -- "-$group"; done 2>/dev/null; wait' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
# shellcheck disable=SC2086 - they are words
sh "$top/tests/vm/setup.sh" $kernels &
wait $! || exit
cd "$top" || exit
# Each file that is looked at costs a second or more inside.
tests=${VM_TESTS:--q $(grep -lE 'mark\.vm\b' tests/test_*.py | tr '\n' ' ')}
# What an emulated processor made late is asked once more.
command=${VM_COMMAND:--m pytest -m vm --reruns 2 --timeout 900 $tests}
acceleration=--disable-kvm  # a /dev/kvm that is there may be a broken one of a nested machine
[ -z "${VM_KVM:-}" ] || acceleration=

machine() {  # kernel, folder for output
    local image
    image=$(ls "$vm/$1/boot/"vmlinuz-*)
    # What the guest mounts with a cache, see guest.sh.
    local shared=() name path
    for name in host=/ vm="$vm"; do
        path=${name#*=} name=${name%%=*}
        shared+=(-q=-fsdev "-q=local,id=$name,path=$path,security_model=none,readonly=on,multidevs=remap"
            -q=-device "-q=virtio-9p-pci,fsdev=$name,mount_tag=$name")
    done
    exec timeout "${VM_MINUTES:-40}m" "$vm/venv/bin/virtme-run" --verbose $acceleration --force-9p --mods auto \
        --kimg "$image" --cpus "$(nproc)" --memory 2G --rwdir "$2" \
        --script-sh "NSORCH_VM_USERS=${VM_USERS:-both} sh $top/tests/vm/guest.sh $top $1 $python $2 $command" \
        "${shared[@]}" </dev/null >"$2/console" 2>&1
}

worst=0
for kernel in $kernels; do
    [ -e "$vm/$kernel/complete" ] || continue
    out=$vm/out-$kernel
    rm -rf "$out"
    mkdir "$out"
    touch "$out/log"
    echo "in a virtual machine, kernel $kernel:"
    machine "$kernel" "$out" &
    tail -n +1 -f --pid=$! "$out/log" &
    wait
    if [ ! -e "$out/status" ]; then
        tail -n 40 "$out/console"
        echo "test-vm: kernel $kernel ended before the tests did: FAILED; see $out"
        worst=1
    elif [ "$(cat "$out/status")" != 0 ]; then
        worst=$(cat "$out/status")
    fi
done
exit "$worst"
