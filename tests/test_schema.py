"""The JSON Schema of topology files: it is the models', and agrees with the reader."""

from __future__ import annotations

import copy
import itertools
import json
import pathlib
from typing import Any

import jsonschema
import pytest
from attrs import fields

from nsorch import Topology, TopologyError
from nsorch.topology import schema
from nsorch.topology.specs import BridgeSpec, End, LinkSpec, To, WorkerSpec
from nsorch.topology.structure import KEYS, from_dict

pytestmark = pytest.mark.once

SCHEMA = jsonschema.Draft202012Validator(Topology.json_schema())


def test_the_shipped_schema_is_the_models() -> None:
    assert pathlib.Path(schema.PATH).read_text() == schema.text()
    jsonschema.Draft202012Validator.check_schema(Topology.json_schema())
    for part, kind in {"bridge": BridgeSpec, "worker": WorkerSpec, "link": LinkSpec, "end": End, "to": To}.items():
        own = {field.name for field in fields(kind)}
        renamed = {"link": {"a", "b"}, "to": {"bridge"}, "end": set()}.get(part, {"name"})
        assert own - renamed <= set(KEYS[part]), part


def test_the_schema_agrees_with_the_reader() -> None:
    validator = jsonschema.Draft202012Validator(Topology.json_schema())
    good: list[Any] = [
        {},
        {
            "name": "x",
            "routing": "shortest-path",
            "workers": {"a": {}, "b": {"count": 3, "links": ["lan"]}},
            "bridges": {"lan": {}},
        },
        {"workers": {"a": {"command": ["x"], "ready": {"tcp": 80}, "env": {"A": "b"}, "user": 5, "stdin": "null"}}},
        {
            "workers": {"a": {}, "b": {}},
            "links": [{"ends": ["a:x", {"worker": "b", "delay": "1ms", "rate": "1Mbit"}], "loss": "1%"}],
        },
        {"workers": {"a": {"namespaces": ["net"]}, "b": {"namespaces": {"net": "worker:a", "uts": True}}}},
        json.loads(Topology.fat_tree(2).to_json()),
    ]
    for data in good:
        validator.validate(data)
        from_dict(data)
    bad: list[Any] = [
        [],
        {"x": 1},
        {"name": 5},
        {"routing": "fastest"},
        {"workers": {"9": {}}},
        {"workers": {"a": {"comand": ["x"]}}},
        {"workers": {"a": {"command": "x"}}},
        {"workers": {"a": {"count": 0}}},
        {"workers": {"a": {"ready": {"tcp": 80, "exec": ["x"]}}}},
        {"workers": {"a": {"ready": {}}}},
        {"workers": {"a": {"namespaces": ["mount"]}}},
        {"workers": {"a": {}}, "links": [{"ends": ["a"]}]},
        {"workers": {"a": {}, "b": {}}, "links": [{"ends": ["a", "b"], "delay": "20 parsecs"}]},
        {"workers": {"a": {}, "b": {}}, "links": [{"ends": ["a", "b"], "loss": 2}]},
        {"workers": {"a": {}, "b": {}}, "links": [{"ends": ["a", "b"], "rate": "fast"}]},
        {"defaults": {"links": {"subnet": "10.0.0.0/8"}}},
    ]
    for data in bad:
        assert list(validator.iter_errors(data)), data
        with pytest.raises(TopologyError):
            from_dict(data)


# One of each part, each with every key that goes with the others: no relation may hide what the schema says.
PARTS: list[dict[str, Any]] = [
    {
        "name": "x",
        "routing": "shortest-path",
        "metric": "delay",
        "defaults": {"links": {"mtu": 1400, "delay": "1ms"}, "workers": {"env": {"A": "b"}}, "bridges": {"mtu": 1400}},
        "bridges": {"lan": {"subnet": ["10.0.0.0/24", "fd00::/64"], "gateway": "r", "arp": "dynamic", "stp": True}},
        "workers": {"r": {"links": ["lan"]}},
    },
    {"bridges": {"v": {"vlan_aware": True, "vlans": {"10": "10.1.0.0/24", "20": ["10.2.0.0/24"]}, "ageing": 9}}},
    {
        "bridges": {"lan": {}},
        "workers": {
            "web": {
                "count": 2,
                "command": ["sleep", "9"],
                "links": [{"to": "lan", "name": "up0", "delay": "1ms", "jitter": 0.001, "loss": "1%"}],
                "ready": {"tcp": 80, "host": "10.0.0.1", "timeout": "5s"},
                "groups": [1, "x"],
                "routes": [{"to": "10.5.0.0/16", "via": "10.0.0.9"}],
                "interfaces": [
                    {"kind": "dummy", "name": "d0", "mtu": 1400},
                    {"kind": "vlan", "name": "v0", "parent": "d0", "id": 5, "protocol": "802.1ad"},
                    {"kind": "bond", "name": "b0", "ports": ["up0"], "mode": "802.3ad", "miimon": "100ms"},
                ],
            }
        },
    },
    {
        "workers": {
            "c": {
                "command": ["x"],
                "ready": {"exec": ["true"], "interval": 1},
                "isolation": "container",
                "rootfs": {"lower": ["/a", "/b"], "size": "64m"},
                "mounts": [
                    {"type": "tmpfs", "dst": "/t", "size": "64m", "mode": "1777"},
                    {"type": "bind", "src": "/a", "dst": "/b", "read_only": True},
                ],
                "masked": ["/x"],
                "capabilities": ["-ALL", "+NET_ADMIN"],
                "rlimits": {"nofile": [1, "unlimited"], "RLIMIT_CORE": 0},
                "limits": {"memory": "64m", "cpus": 1.5, "io": {"8:0": {"rbps": "1MB"}}},
                "time_offsets": {"monotonic": 5},
                "stdin": "null",
            }
        }
    },
    {
        "bridges": {"lan": {"subnet": "10.0.0.0/24"}},
        "workers": {
            "r": {
                "links": ["lan"],
                "nat": {
                    "outside": "lan",
                    "forwards": [{"port": "80-81", "to": "10.0.0.7", "protocol": "udp"}],
                    "prefixes": {"fd00:1::/64": "fd00:2::/64"},
                },
                "firewall": {"input": "drop", "rules": [{"action": "accept", "protocol": "tcp", "port": "1-2"}]},
            },
            "f": {"service": {"frr": {"protocols": ["ospf"], "area": 0}}},
        },
    },
    {
        "workers": {"a": {}, "b": {}},
        "links": [
            {"ends": ["a:x", {"worker": "b", "mac": "02:00:00:00:00:01", "rate": "1gibit"}], "weight": 2, "label": "é"},
            {"ends": ["b", "a"], "subnet": "10.0.0.0/24", "gilbert_elliott": {"p": "1%", "r": 0.1}},
        ],
    },
]
STRANGE: list[Any] = [
    *(None, True, False, 0, 1, -1, 5000, 10**20, 0.5, "", "x", "lan", "5", "1%", "20ms", "1tibit", "64k", "/x", "new"),
    *("10.0.0.0/24", "fd00::1", "all", "tcp", [], [1], ["x"], [""], [["x"]], [0, 1, 2], ["lan", "lan"], {}, {"a": "b"}),
    *({"x": None}, {"kind": []}, [{"kind": {}}], [{"type": []}], {"exec": ["x"], "host": "h"}, {"NOFILE": 1}),
]


def places(value: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, item in items for place in [(*above, key), *places(item, (*above, key))]]


@pytest.mark.parametrize("part", PARTS, ids=range(len(PARTS)))
def test_what_the_schema_refuses_is_refused(part: dict[str, Any]) -> None:
    for (*above, last), value in itertools.product(places(part), STRANGE):
        changed = copy.deepcopy(part)
        table: Any = changed
        for key in above:
            table = table[key]
        table[last] = copy.deepcopy(value)
        try:
            topology = from_dict(changed)
        except TopologyError:
            continue
        SCHEMA.validate(changed)
        again = json.loads(topology.to_json())
        SCHEMA.validate(again)
        assert from_dict(again) == topology


def test_each_part_is_fine() -> None:
    for part in PARTS:
        SCHEMA.validate(part)
        from_dict(part)
