"""The part of the JSON Schema that is about interfaces of workers."""

from __future__ import annotations

from typing import Any

from nsorch.topology import interfaces as choices
from nsorch.topology.interface_files import INTERFACES, keys_of, required_of
from nsorch.topology.tunnels import PEER_KEYS

_TEXT = {"type": "string"}
_IFNAME = {"type": "string", "minLength": 1, "maxLength": 15}
_IFNAMES = {"anyOf": [_IFNAME, {"type": "array", "items": _IFNAME}]}
_ONE_OR_MORE = {"anyOf": [_TEXT, {"type": "array", "items": _TEXT}]}
_PORT = {"type": "integer", "minimum": 1, "maximum": 65535}
_KEY = {"type": "string", "pattern": "^[A-Za-z0-9+/]{43}=$"}
_PEER_VALUES: dict[str, Any] = {
    "worker": _TEXT,
    "interface": {**_IFNAME, "description": "of the worker; the one that fits if not given"},
    "public_key": _KEY,
    "endpoint": {"type": "string", "description": "address:port; a worker's own if not given"},
    "allowed_ips": _ONE_OR_MORE,
    "preshared_key": _KEY,
    "keepalive": {"type": "integer", "minimum": 1, "maximum": 65535, "description": "seconds"},
}
_PEER = {
    "anyOf": [
        {"type": "string", "description": "a worker"},
        {
            "type": "object",
            "properties": {key: _PEER_VALUES[key] for key in PEER_KEYS},
            "additionalProperties": False,
            "oneOf": [{"required": ["worker"]}, {"required": ["public_key"]}],
        },
    ]
}
_VALUES: dict[str, Any] = {
    "name": _IFNAME,
    "address": {**_ONE_OR_MORE, "description": "with the length of its subnet"},
    "mac": {"type": "string", "pattern": "^[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}$"},
    "mtu": {"type": "integer", "minimum": 68, "maximum": 65535, "description": "bytes"},
    "parent": {**_IFNAME, "description": "an end of a link, or an interface before this"},
    "ports": _IFNAMES,
    "protocol": {"enum": list(choices.VLAN_PROTOCOLS)},
    "remote": {**_ONE_OR_MORE, "description": "workers or addresses"},
    "local": _TEXT,
    "port": _PORT,
    "table": {"type": "integer", "minimum": 1, "maximum": 0xFFFFFFFE},
    "miimon": {"type": ["number", "string"], "description": "seconds, or such as 100ms"},
    "xmit_hash_policy": {"enum": list(choices.HASH_POLICIES)},
    "lacp_rate": {"enum": list(choices.LACP_RATES)},
    "peers": {"anyOf": [_PEER, {"type": "array", "items": _PEER}]},
    "private_key": _KEY,
}
_MODES = {
    "macvlan": choices.MACVLAN_MODES,
    "ipvlan": choices.IPVLAN_MODES,
    "bond": choices.BOND_MODES,
    "tun": choices.TUN_MODES,
}
_LAST_ID = {"vlan": (1, 4094), "vxlan": (0, 0xFFFFFF)}


def interface_schema() -> dict[str, Any]:
    return {"type": "object", "required": ["kind"], "oneOf": [_of(kind) for kind in INTERFACES]}


def _of(kind: str) -> dict[str, Any]:
    values: dict[str, Any] = {**_VALUES, "kind": {"const": kind}}
    if kind in _MODES:
        values["mode"] = {"enum": list(_MODES[kind])}
    if kind in _LAST_ID:
        first, last = _LAST_ID[kind]
        values["id"] = {"type": "integer", "minimum": first, "maximum": last}
    return {
        "properties": {key: values[key] for key in keys_of(kind)},
        "required": ["kind", *required_of(kind)],
        "additionalProperties": False,
    }
