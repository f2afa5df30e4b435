#!/bin/sh
# A star of $1 network namespaces by ip(8); prints how many seconds it took, and until its last interface was gone.
set -eu
count=$1
now() { date +%s%N; }
begin=$(now)
ip link add br0 type bridge mcast_snooping 0
ip addr add 10.0.0.1/8 dev br0
ip link set br0 up
number=0
while [ "$number" -lt "$count" ]; do
    address=10.1.$((number / 250)).$((number % 250 + 1))
    ip netns add "h$number"
    ip link add "v$number" type veth peer name eth0 netns "h$number"
    ip link set "v$number" master br0 up
    ip -n "h$number" link set lo up
    ip -n "h$number" link set eth0 up
    ip -n "h$number" addr add "$address/8" dev eth0
    ip -n "h$number" route add default via 10.0.0.1
    number=$((number + 1))
done
created=$(now)
number=0
while [ "$number" -lt "$count" ]; do
    ip netns del "h$number"
    number=$((number + 1))
done
ip link del br0
while grep -q '^ *v' /proc/net/dev; do sleep 0.005; done
gone=$(now)
echo "{\"created\": $(((created - begin) / 1000))e-6, \"gone\": $(((gone - created) / 1000))e-6}"
