"""The JSON Schema of a topology file, made from the same lists of keys that the reader goes by."""

from __future__ import annotations

import json
import os
from typing import Any

from nsorch.topology.emulation import DISTRIBUTIONS, PROFILE_NAMES
from nsorch.topology.filters import ACTIONS, CHAINS, FIREWALL_PRESETS, NAT_KINDS, POLICIES, PROTOCOLS, TRANSPORTS
from nsorch.topology.interface_schema import interface_schema
from nsorch.topology.limits import IO_KEYS
from nsorch.topology.model import METRICS, ROUTING
from nsorch.topology.mounts import MOUNT_KEYS, PROPAGATIONS
from nsorch.topology.namespaces import KINDS
from nsorch.topology.plain import PRESETS
from nsorch.topology.privileges import CAPABILITIES, CAPABILITY_SETS, CLOCKS, RLIMIT_NAMES, RLIMITS
from nsorch.topology.services import ROUTING_PROTOCOLS
from nsorch.topology.specs import ARP
from nsorch.topology.structure import DEFAULT_KEYS, KEYS, MOST_COPIES
from nsorch.topology.uplinks import UPLINK_METHODS

PATH = os.path.join(os.path.dirname(__file__), "schema.json")

_NAME = "^[A-Za-z][A-Za-z0-9-]{0,62}$"
_TEXT = {"type": "string"}
_FLAG = {"type": "boolean"}
_MTU = {"type": "integer", "minimum": 68, "maximum": 65535, "description": "bytes"}
_VLAN = {"type": "integer", "minimum": 1, "maximum": 4094}
_COMMAND = {"type": "array", "items": _TEXT, "minItems": 1}
_ONE_OR_MORE = {"anyOf": [_TEXT, {"type": "array", "items": _TEXT}]}
_DURATION = {
    "anyOf": [
        {"type": "number", "minimum": 0},
        {"type": "string", "pattern": r"^\s*([0-9]+(\.[0-9]*)?|\.[0-9]+)\s*(s|secs?|ms|msec|us|µs|usec|ns)?\s*$"},
    ],
    "description": "seconds, or such as 20ms",
}
_FRACTION = {
    "anyOf": [
        {"type": "number", "minimum": 0, "maximum": 1},
        {"type": "string", "pattern": r"^\s*([0-9]+(\.[0-9]*)?|\.[0-9]+)\s*%?\s*$"},
    ],
    "description": "a share of 1, or such as 1%",
}
_RATE = {
    "anyOf": [
        {"type": "number", "exclusiveMinimum": 0, "maximum": 1e20},
        {
            "type": "string",
            "pattern": r"^\s*([0-9]+(\.[0-9]*)?|\.[0-9]+)\s*(([KkMmGg][Ii]?|[Tt])?([Bb][Ii][Tt]|[Bb][Pp][Ss]))?\s*$",
        },
    ],
    "description": "bits per second, or such as 10mbit",
}
_EMULATION: dict[str, Any] = {
    "profile": {"enum": list(PROFILE_NAMES), "description": "a kind of access link, for what else isn't said"},
    "delay": _DURATION,
    "jitter": _DURATION,
    "delay_correlation": _FRACTION,
    "distribution": {"enum": list(DISTRIBUTIONS), "default": "uniform", "description": "of the jitter"},
    "loss": _FRACTION,
    "loss_correlation": _FRACTION,
    "gilbert_elliott": {
        "type": "object",
        "properties": {
            "p": {**_FRACTION, "description": "how likely a good link gets bad"},
            "r": {**_FRACTION, "description": "how likely a bad link gets good"},
            "bad": {**_FRACTION, "description": "loss in the bad state"},
            "good": {**_FRACTION, "description": "loss in the good state"},
        },
        "required": ["p"],
        "additionalProperties": False,
        "description": "loss in bursts",
    },
    "duplicate": _FRACTION,
    "corrupt": _FRACTION,
    "reorder": _FRACTION,
    "rate": _RATE,
    "limit": {"type": "integer", "minimum": 1, "description": "packets"},
}
_SUBNET = {**_ONE_OR_MORE, "description": "a network of a family, or one of each"}
_STREAM = {"type": "string", "description": "null, inherit, or a file"}
_SIZE = {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string"}], "description": "bytes, or such as 64m"}
_LIMIT_SIZE = {
    "anyOf": [{"type": "integer", "minimum": 0}, {"type": "string"}],
    "description": "bytes, or such as 512MiB",
}
_RATES = {key: _LIMIT_SIZE if key.endswith("bps") else {"type": "integer", "minimum": 1} for key in IO_KEYS}
_PATHS = {"type": "array", "items": {"type": "string", "pattern": "^/"}}
_ID = {"type": "integer", "minimum": 0}
_ID_MAP = {
    "type": "array",
    "items": {"type": "array", "items": _ID, "minItems": 3, "maxItems": 3},
    "description": "first id inside, first id outside, how many",
}
_CAPABILITY_NAME = f"(?:(?:CAP_)?(?:{'|'.join(CAPABILITIES)})|{'|'.join(CAPABILITIES).lower()}|ALL|all)"
_CAPABILITY = {"type": "string", "pattern": f"^{_CAPABILITY_NAME}$"}
_CAPABILITY_SET = {"anyOf": [{"enum": ["all", "ALL"]}, {"type": "array", "items": _CAPABILITY}]}
_CAPABILITY_CHANGE = {"type": "string", "pattern": f"^[+-]{_CAPABILITY_NAME}$"}
_LIMIT = {"anyOf": [{"type": "integer", "minimum": -1}, {"const": "unlimited"}]}
_MOUNT: dict[str, Any] = {
    "src": {**_TEXT, "description": "on the host"},
    "dst": {"type": "string", "pattern": "^/", "description": "in the worker"},
    "read_only": {**_FLAG, "default": False},
    "recursive": {**_FLAG, "default": True, "description": "with what is mounted below"},
    "propagation": {"enum": list(PROPAGATIONS), "default": "private"},
    "size": _SIZE,
    "mode": {"type": ["string", "integer"], "description": "such as 1777"},
    "exec": {**_FLAG, "default": True, "description": "whether programs may be run from it"},
}
_ISOLATION: dict[str, Any] = {
    "isolation": {"enum": list(PRESETS), "default": "network"},
    "rootfs": {
        "anyOf": [
            _TEXT,
            {
                "type": "object",
                "properties": {"lower": _ONE_OR_MORE, "upper": _TEXT, "work": _TEXT, "size": _SIZE},
                "required": ["lower"],
                "additionalProperties": False,
            },
        ],
        "description": "a directory, or the layers of an overlay, the topmost first",
    },
    "mounts": {
        "type": "array",
        "items": {
            "anyOf": [
                {
                    "type": "object",
                    "properties": {"type": {"const": kind}, **{key: _MOUNT[key] for key in keys if key != "type"}},
                    "required": [key for key in ("type", "src", "dst") if key in keys],
                    "additionalProperties": False,
                }
                for kind, keys in MOUNT_KEYS.items()
            ]
        },
    },
    "readonly_root": _FLAG,
    "masked": {**_PATHS, "description": "paths that appear empty"},
    "readonly_paths": _PATHS,
    "groups": {
        "type": "array",
        "items": {"type": ["string", "integer"]},
        "maxItems": 65536,
        "description": "supplementary groups",
    },
    "capabilities": {
        "anyOf": [
            *_CAPABILITY_SET["anyOf"],
            {"type": "array", "items": _CAPABILITY_CHANGE, "description": "more or less than the preset's"},
            {
                "type": "object",
                "properties": dict.fromkeys(CAPABILITY_SETS, _CAPABILITY_SET),
                "additionalProperties": False,
            },
        ]
    },
    "no_new_privs": _FLAG,
    "seccomp": {**_TEXT, "description": "default, unconfined, or the path of a BPF program"},
    "rlimits": {
        "type": "object",
        "propertyNames": {"anyOf": [{"enum": list(RLIMITS)}, {"pattern": RLIMIT_NAMES}]},
        "additionalProperties": {
            "anyOf": [_LIMIT, {"type": "array", "items": _LIMIT, "minItems": 2, "maxItems": 2}],
            "description": "a limit, or the soft and the hard one",
        },
    },
    "limits": {
        "type": "object",
        "properties": {
            "memory": _LIMIT_SIZE,
            "memory_high": _LIMIT_SIZE,
            "swap": _LIMIT_SIZE,
            "cpus": {"type": "number", "minimum": 0.01, "description": "such as 1.5"},
            "cpu_weight": {"type": "integer", "minimum": 1, "maximum": 10000},
            "cpuset": {"type": "string", "description": "such as 0-1,4"},
            "pids": {"type": "integer", "minimum": 1},
            "io": {
                "type": "object",
                "propertyNames": {"pattern": "^([0-9]+:[0-9]+|/.+)$"},
                "additionalProperties": {
                    "type": "object",
                    "properties": _RATES,
                    "minProperties": 1,
                    "additionalProperties": False,
                },
                "description": "by block device: its path, or major:minor",
            },
        },
        "additionalProperties": False,
    },
    "oom_score_adj": {"type": "integer", "minimum": -1000, "maximum": 1000},
    "cgroup_namespace": _FLAG,
    "time_offsets": {
        "type": "object",
        "propertyNames": {"enum": list(CLOCKS)},
        "additionalProperties": {"type": "number", "description": "seconds"},
    },
    "uid_map": _ID_MAP,
    "gid_map": _ID_MAP,
    "domainname": _TEXT,
}


_PORT = {
    "anyOf": [
        {"type": "integer", "minimum": 1, "maximum": 65535},
        {"type": "string", "pattern": "^[0-9]{1,5}(-[0-9]{1,5})?$"},
    ],
    "description": "a port, or a range such as 8000-8010",
}


def _closed(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        **({"required": list(required)} if required else {}),
    }


_FORWARD = _closed(
    {
        "port": _PORT,
        "to": {"type": "string", "description": "a worker or an address, with another port: web:8080"},
        "protocol": {"enum": list(TRANSPORTS), "default": "tcp"},
    },
    "port",
    "to",
)
_OUTSIDE = {**_ONE_OR_MORE, "description": "interfaces to the outside, or what their links lead to"}
_NAT = _closed(
    {
        "outside": _OUTSIDE,
        "kind": {"enum": list(NAT_KINDS), "default": "masquerade"},
        "forwards": {"type": "array", "items": _FORWARD},
        "ipv6": {**_FLAG, "default": False, "description": "translate IPv6 addresses, too"},
        "prefixes": {
            "type": "object",
            "additionalProperties": _TEXT,
            "description": "IPv6 prefixes inside, and what they are outside (NPTv6)",
        },
        "timeout": {**_DURATION, "default": 300},
    },
    "outside",
)
_DNSMASQ = _closed(
    {
        "inside": {**_ONE_OR_MORE, "description": "interfaces to serve on, or what their links lead to"},
        "dhcp": {**_FLAG, "default": True},
        "range": {"type": "string", "description": "of addresses given out: 10.0.0.100-10.0.0.200"},
        "lease": {**_DURATION, "default": 3600},
        "ra": {**_FLAG, "default": True, "description": "router advertisements"},
        "domain": _TEXT,
        "servers": {**_ONE_OR_MORE, "description": "DNS servers for all other names"},
    },
    "inside",
)
_PROTOCOLS = {"enum": list(ROUTING_PROTOCOLS)}
_FRR = _closed(
    {
        "protocols": {"anyOf": [_PROTOCOLS, {"type": "array", "items": _PROTOCOLS, "minItems": 1}]},
        "asn": {"type": "integer", "minimum": 1, "maximum": 2**32 - 2},
        "area": {"type": ["string", "integer"], "minimum": 0, "default": "0"},
        "hello": {**_DURATION, "default": 1},
        "config": _TEXT,
        "timeout": {**_DURATION, "default": 60},
    },
    "protocols",
)
_PREFIX = {**_TEXT, "description": "where IPv4 is for those with IPv6 alone: 64:ff9b::/96"}
_TAYGA = _closed(
    {
        "prefix": _PREFIX,
        "pool": {**_TEXT, "default": "192.168.255.0/24", "description": "IPv4 addresses of those with IPv6 alone"},
    },
    "prefix",
)
_SERVICE = {
    **_closed(
        {
            "dnsmasq": {"anyOf": [_ONE_OR_MORE, _DNSMASQ]},
            "frr": {"anyOf": [*_FRR["properties"]["protocols"]["anyOf"], _FRR]},
            "tayga": {"anyOf": [_PREFIX, _TAYGA]},
        }
    ),
    "minProperties": 1,
    "maxProperties": 1,
}
_UPLINK = {
    "anyOf": [
        {"type": "boolean"},
        {"enum": list(UPLINK_METHODS)},
        _closed({"method": {"enum": list(UPLINK_METHODS)}, "name": {**_TEXT, "default": "up0"}}),
    ],
    "description": "a way to the outside of the lab; workers without one have none",
}
_RULE = _closed(
    {
        "action": {"enum": list(ACTIONS)},
        "chain": {"enum": list(CHAINS), "default": "input"},
        "protocol": {"enum": list(PROTOCOLS)},
        "port": _PORT,
        "source": _ONE_OR_MORE,
        "destination": _ONE_OR_MORE,
        "incoming": _TEXT,
        "outgoing": _TEXT,
    },
    "action",
)
_FIREWALL = _closed(
    {
        "preset": {"enum": list(FIREWALL_PRESETS)},
        "outside": _OUTSIDE,
        **{chain: {"enum": list(POLICIES)} for chain in CHAINS},
        "rules": {"type": "array", "items": _RULE},
    }
)


def _table(names: str, values: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "propertyNames": {"pattern": names}, "additionalProperties": values}


_VALUES: dict[str, dict[str, Any]] = {
    "topology": {
        "name": _TEXT,
        "routing": {"enum": list(ROUTING)},
        "metric": {"enum": list(METRICS), "default": "weight", "description": "what shortest paths are short of"},
        "defaults": {"$ref": "#/$defs/defaults"},
        "bridges": {
            "type": "object",
            "propertyNames": {"pattern": _NAME},
            "additionalProperties": {"$ref": "#/$defs/bridge"},
        },
        "workers": {
            "type": "object",
            "propertyNames": {"pattern": _NAME},
            "additionalProperties": {"$ref": "#/$defs/worker"},
        },
        "links": {"type": "array", "items": {"$ref": "#/$defs/link"}},
    },
    "bridge": {
        "subnet": _SUBNET,
        "gateway": {"type": "string", "pattern": _NAME, "description": "the worker that is the others' default route"},
        "mtu": _MTU,
        "arp": {
            "enum": list(ARP),
            "default": "auto",
            "description": "who answers ARP: the bridge, its workers, or the bridge once it has 500 of them",
        },
        "vlan_aware": {**_FLAG, "default": False, "description": "ports are in VLANs, which don't hear each other"},
        "vlans": {**_table("^[0-9]+$", _SUBNET), "description": "subnets of VLANs, by number"},
        "stp": {**_FLAG, "default": False, "description": "spanning tree protocol"},
        "forward_delay": {**_DURATION, "description": "with stp: of listening, and of learning; 2 to 30 s"},
        "ageing": {**_DURATION, "description": "until a hardware address is forgotten; 300 s if not given"},
        "multicast_snooping": {**_FLAG, "default": False, "description": "multicast only to ports that want it"},
        "label": _TEXT,
    },
    "worker": {
        "count": {
            "type": "integer",
            "minimum": 1,
            "maximum": MOST_COPIES,
            "description": "so many workers: NAME-1, NAME-2, …",
        },
        "command": _COMMAND,
        "links": {"type": "array", "items": {"anyOf": [{"type": "string", "pattern": _NAME}, {"$ref": "#/$defs/to"}]}},
        "namespaces": {
            "anyOf": [
                {"type": "array", "items": {"enum": list(KINDS)}},
                {
                    "type": "object",
                    "propertyNames": {"enum": list(KINDS)},
                    "additionalProperties": {"type": ["string", "boolean"]},
                },
            ]
        },
        "env": {"type": "object", "additionalProperties": _TEXT},
        "user": {"type": ["string", "integer"]},
        "ready": {"$ref": "#/$defs/ready"},
        "sysctls": {"type": "object", "additionalProperties": {"type": ["string", "integer"]}},
        "routes": {"type": "array", "items": {"$ref": "#/$defs/route"}},
        "nat": {"anyOf": [_ONE_OR_MORE, {"$ref": "#/$defs/nat"}]},
        "firewall": {"anyOf": [{"enum": list(FIREWALL_PRESETS)}, {"$ref": "#/$defs/firewall"}]},
        "interfaces": {
            "type": "array",
            "items": {"$ref": "#/$defs/interface"},
            "description": "besides the ends of links; those that need others stand behind them",
        },
        "service": {"$ref": "#/$defs/service"},
        "uplink": _UPLINK,
        "cwd": _TEXT,
        "hostname": _TEXT,
        "label": _TEXT,
        "stdin": _STREAM,
        "stdout": _STREAM,
        "stderr": _STREAM,
        "init": {**_FLAG, "default": True, "description": "a small init is PID 1, and the command its child"},
        "critical": {**_FLAG, "default": False, "description": "an unexpected end ends the lab"},
        "forward": {**_FLAG, "default": False, "description": "forward packets between links"},
        **_ISOLATION,
    },
    "link": {
        "ends": {
            "type": "array",
            "items": {"anyOf": [_TEXT, {"$ref": "#/$defs/end"}]},
            "minItems": 2,
            "maxItems": 2,
            "description": "worker, worker:interface, or bridge",
        },
        "subnet": _SUBNET,
        "mtu": _MTU,
        "weight": {"type": "number", "exclusiveMinimum": 0, "default": 1, "description": "cost for the routing"},
        "label": _TEXT,
        **_EMULATION,
    },
    "end": {
        "worker": _TEXT,
        "name": {"type": "string", "minLength": 1, "maxLength": 15, "description": "of the interface"},
        "address": _ONE_OR_MORE,
        "mac": {"type": "string", "pattern": "^[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}$"},
        "mtu": _MTU,
        "vlan": {**_VLAN, "description": "of untagged frames"},
        "tagged": {"anyOf": [_VLAN, {"type": "array", "items": _VLAN}]},
        "dhcp": {**_FLAG, "default": False, "description": "its IPv4 address comes from a DHCP server"},
        **_EMULATION,
    },
    "route": {"to": _TEXT, "via": _TEXT, "dev": _TEXT},
    "ready": {
        "tcp": {"type": "integer", "minimum": 1, "maximum": 65535},
        "exec": _COMMAND,
        "host": _TEXT,
        "timeout": _DURATION,
        "interval": _DURATION,
    },
}
_VALUES["to"] = {
    "to": {"type": "string", "pattern": _NAME},
    **{k: v for k, v in _VALUES["end"].items() if k != "worker"},
}
_REQUIRED = {"link": ["ends"], "end": ["worker"], "to": ["to"], "route": ["to"]}


def make_schema() -> dict[str, Any]:
    """JSON Schema, draft 2020-12, of what :meth:`Topology.load` reads; it can't say what one part means for another."""
    parts = {part: _object(part, keys) for part, keys in KEYS.items()}
    parts["ready"]["oneOf"] = [{"required": ["tcp"]}, {"required": ["exec"], "properties": {"host": False}}]
    parts |= {"nat": _NAT, "firewall": _FIREWALL, "service": _SERVICE}
    values = {"bridges": "bridge", "workers": "worker", "links": "link"}
    parts["defaults"] = _closed(
        {kind: _closed({key: _VALUES[values[kind]][key] for key in keys}) for kind, keys in DEFAULT_KEYS.items()}
    )
    parts["interface"] = interface_schema()
    top = parts.pop("topology")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A topology of nsorch",
        **top,
        "$defs": parts,
    }


def _object(part: str, keys: tuple[str, ...]) -> dict[str, Any]:
    made = _closed({key: _VALUES[part][key] for key in keys})
    return made | ({"required": _REQUIRED[part]} if part in _REQUIRED else {})


def text() -> str:
    """As it is shipped."""
    return json.dumps(make_schema(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    with open(PATH, "w", encoding="utf-8") as file:
        file.write(text())
