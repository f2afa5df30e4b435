"""Topology files: lines of errors, templates, defaults, the schema, graphs of other tools, and files that are fuzzed."""

from __future__ import annotations

import copy
import itertools
import json
import math
import pathlib
import subprocess
import sys
from typing import Any

import jsonschema
import networkx as nx
import pytest
import yaml
from attrs import fields
from hypothesis import given, settings
from hypothesis import strategies as st

import nsorch
from nsorch import Topology, TopologyError
from nsorch.topology import schema
from nsorch.topology.positions import toml_lines, yaml_lines
from nsorch.topology.specs import BridgeSpec, End, LinkSpec, To, WorkerSpec
from nsorch.topology.structure import KEYS, from_dict

TOP = pathlib.Path(__file__).parent.parent
TOPOLOGIES = TOP.parent / "shared" / "topologies"
needs_topologies = pytest.mark.skipif(not TOPOLOGIES.is_dir(), reason="../shared/topologies is not here")


SCHEMA = jsonschema.Draft202012Validator(Topology.json_schema())


def load(text: str, path: pathlib.Path) -> Topology:
    path.write_text(text)
    return Topology.load(path)


def refusal(text: str, path: pathlib.Path) -> TopologyError:
    with pytest.raises(TopologyError) as raised:
        load(text, path)
    return raised.value


# -- lines

TOML = '''\
# a comment with [brackets] and "quotes"
name = "a # b"
[bridges.lan]
subnet = "10.0.0.0/33"

[workers]
"9web".forward = true

[workers.web]
env = { A = "1", B = """
two
lines""" }
links = [
    "lan",  # ]
    { to = "lan", delay = "20 parsecs" },
]

[[workers.db.links]]
to = "lan"
[[workers.db.links]]
too = "lan"

[[links]]
ends = ["web", "db"]
[[links]]
ends = ["web"]
loss = 7
'''


def test_lines_of_toml(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "lab.toml"
    error = refusal(TOML, path)
    found = dict(zip([problem.partition(": ")[0] for problem in error.problems], error.lines, strict=True))
    assert found["bridges.lan.subnet"] == 4
    assert found["workers.web.links[1].delay"] == 15
    assert found["workers.db.links[1].too"] == 21
    assert found["links[1].ends"] == 26
    assert f"{path}:15: workers.web.links[1].delay: " in str(error)


def test_lines_of_yaml(tmp_path: pathlib.Path) -> None:
    text = "bridges: {lan: {}}\nworkers:\n  web:\n    links:\n      - to: lan\n        delay: 20 parsecs\n  x:\n    comand: [a]\n"
    error = refusal(text, tmp_path / "lab.yaml")
    assert list(zip([p.partition(": ")[0] for p in error.problems], error.lines, strict=True)) == [
        ("workers.web.links[0].delay", 6),
        ("workers.x.comand", 8),
    ]


def test_json_has_no_lines(tmp_path: pathlib.Path) -> None:
    error = refusal('{"nonsense": 1}', tmp_path / "lab.json")
    assert error.lines == (None,)
    assert str(error).endswith("lab.json: nonsense: unknown key")


KEY = st.text(st.sampled_from('ab."\\\n é#=[]'), min_size=1, max_size=4)
PLAIN = st.recursive(
    st.one_of(st.booleans(), st.integers(), st.text(max_size=8), st.floats(allow_nan=False, allow_infinity=False)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEY, inner, max_size=3)),
    max_leaves=8,
)


def paths_of(value: Any, path: str = "") -> set[str]:
    found = {path} if path else set()
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        below = f"{path}[{key}]" if isinstance(value, list) else f"{path}.{key}" if path else key
        found |= paths_of(item, below)
    return found


@given(st.dictionaries(KEY, PLAIN, max_size=4))
@pytest.mark.once
def test_every_path_has_a_line(data: dict[str, Any]) -> None:
    from nsorch.topology.files import _key, _toml

    text = "".join(f"{_key(key)} = {_toml(value)}\n" for key, value in data.items())
    lines = toml_lines(text)
    assert set(lines) == paths_of(data)
    top = {key: number for number, key in enumerate(data, 1)}
    assert {key: lines[key] for key in top} == top
    assert set(yaml_lines(yaml.safe_dump(data, allow_unicode=True))) == paths_of(data)


# -- templates and defaults


def test_count_makes_that_many(tmp_path: pathlib.Path) -> None:
    text = '[bridges.lan]\nsubnet = "10.0.0.0/24"\n[workers.web]\ncount = 50\nlinks = ["lan"]\n[workers.r1]\n'
    topology = load(text, tmp_path / "lab.toml")
    assert list(topology.workers) == [*(f"web-{n}" for n in range(1, 51)), "r1"]
    assert topology.workers["web-50"].links == (To("lan"),)
    topology.dump(tmp_path / "again.toml")
    assert Topology.load(tmp_path / "again.toml") == topology


@pytest.mark.parametrize(
    ("worker", "rest", "problem"),
    [
        ("count = 0", "", "workers.web.count: 0 is not a whole number"),
        ("count = true", "", "workers.web.count: True is not"),
        ('count = "2"', "", 'workers.web.count: "2" is not'),
        ("count = 1000000000000", "", "workers.web.count: 1000000000000 is not a whole number from 1 to 100000"),
        ('count = 2\nhostname = "x"', "", "workers.web.hostname: one can't be given to several"),
        ('count = 2\nlinks = [{ to = "lan", address = "10.0.0.9" }]', "", "workers.web.links[0].address: one can't"),
        ('count = 2\nlinks = [{ to = "lan", mac = "02:00:00:00:00:01" }]', "", "workers.web.links[0].mac: one can't"),
        ("count = 2", "[workers.web-2]", 'there is a worker or bridge "web-2" already'),
        ("count = 2", '[[links]]\nends = ["web", "x"]\n[workers.x]', 'no worker or bridge "web", but web-1 to web-2'),
    ],
)
def test_wrong_templates(worker: str, rest: str, problem: str, tmp_path: pathlib.Path) -> None:
    text = f'[bridges.lan]\nsubnet = "10.0.0.0/24"\n[workers.web]\n{worker}\n{rest}\n'
    assert problem in str(refusal(text, tmp_path / "lab.toml"))


def test_names_that_a_count_makes_too_long(tmp_path: pathlib.Path) -> None:
    error = refusal(f"[workers.{'x' * 62}]\ncount = 10\n", tmp_path / "lab.toml")
    assert "is not a name" in str(error)


def test_defaults(tmp_path: pathlib.Path) -> None:
    text = """
        [defaults.workers]
        forward = true
        command = ["sleep", "9"]
        [defaults.links]
        delay = "5ms"
        mtu = 1400
        [defaults.bridges]
        mtu = 1300
        [bridges.lan]
        [workers.a]
        links = ["lan", { to = "lan", delay = "1ms" }]
        [workers.b]
        forward = false
        [[links]]
        ends = ["a", "b"]
        [[links]]
        ends = ["a", "b"]
        mtu = 9000
    """
    topology = load(text, tmp_path / "lab.toml")
    a, b = topology.workers.values()
    assert (a.forward, b.forward, b.command) == (True, False, ("sleep", "9"))
    assert [(to.delay, to.mtu) for to in a.links] == [(0.005, 1400), (0.001, 1400)]
    assert [(link.delay, link.mtu) for link in topology.links] == [(0.005, 1400), (0.005, 9000)]
    assert topology.bridges["lan"].mtu == 1300
    topology.dump(tmp_path / "again.yaml")
    assert Topology.load(tmp_path / "again.yaml") == topology
    for wrong in ("[defaults.links]\nsubnet = 1", "[defaults.workers]\nhostname = 'x'", "[defaults.cables]"):
        assert "unknown key" in str(refusal(wrong, tmp_path / "wrong.toml"))


# -- the schema


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
                "capabilities": ["+NET_ADMIN"],
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


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ({"workers": {"a": {"command": {"x": 1}}}}, "workers.a.command: {'x': 1} is not a list of strings"),
        ({"workers": {"a": {"interfaces": [{"kind": []}]}}}, "workers.a.interfaces[0].kind: [] is none of"),
        ({"bridges": {"v": {"vlans": False}}}, "bridges.v.vlans: False is not a table"),
        ({"workers": {"a": {"command": ["x"], "ready": {"exec": [""]}}}}, "workers.a.ready.exec: the program has no"),
        ({"workers": {"a": {"command": ["x"], "ready": {"exec": ["x"], "host": "h"}}}}, "workers.a.ready.host: only"),
        ({"workers": {"a": {"command": ["x"], "ready": {"tcp": 1, "host": 5}}}}, "workers.a.ready.host: 5 is not"),
        ({"workers": {"a": {"command": ["x"], "ready": {"tcp": 1, "timeout": "x"}}}}, "workers.a.ready.timeout: "),
        ({"workers": {"a": {"rootfs": {"lower": "/", "size": "x"}}}}, "workers.a.rootfs.size: "),
        ({"workers": {"a": {"routes": [{"to": "::/0", "dev": "a/b"}]}}}, 'workers.a.routes[0].dev: "a/b" can\'t'),
        ({"workers": {"a": {"links": [{"to": "x", "rate": 1e21}]}}}, "workers.a.links[0].rate: 1e+21 is above"),
        (
            {"workers": {"a": {"interfaces": [{"kind": "bond", "name": "b", "ports": ["x"], "miimon": 1e9}]}}},
            "workers.a.interfaces[0].miimon: 1000000000.0 is above",
        ),
        ({"workers": {"a": {"links": ["a b"]}}}, 'workers.a.links[0]: "a b" is not a name'),
        ({"workers": {"a": {"links": [{"to": "a b"}]}}}, 'workers.a.links[0].to: "a b" is not a name'),
        ({"links": [{"ends": [{"worker": "a b"}, "9:x"]}]}, 'links[0].ends[0].worker: "a b" is not a name'),
        ({"links": [{"ends": [{"worker": "a b"}, "9:x"]}]}, 'links[0].ends[1]: "9" is not a name'),
    ],
)
def test_paths_of_problems(data: dict[str, Any], problem: str) -> None:
    with pytest.raises(TopologyError) as raised:
        from_dict(data)
    assert any(found.startswith(problem) for found in raised.value.problems), raised.value.problems


def test_what_has_no_value_is_named_with_all_other_errors(tmp_path: pathlib.Path) -> None:
    text = "bridges:\n  lan:\n    subnet:\nworkers:\n  a:\n    links:\n    command: !!set {x: }\n    forward: 5\n"
    error = refusal(text, tmp_path / "lab.yaml")
    assert list(zip(error.problems, error.lines, strict=True)) == [
        ("bridges.lan.subnet: has no value: leave it out", 3),
        ("workers.a.links: has no value: leave it out", 6),
        ("workers.a.command: {'x'} is neither a list nor a string", 7),
        ("workers.a.forward: 5 is neither true nor false", 8),
    ]


def test_a_wrong_default_is_told_once(tmp_path: pathlib.Path) -> None:
    text = """
[defaults.links]
delay = "20 parsecs"
[defaults.workers]
comand = ["x"]
forward = 1
[defaults.bridges]
mtu = 1
"""
    error = refusal(text + "".join(f"[workers.w{n}]\n" for n in range(9)), tmp_path / "lab.toml")
    assert list(zip([p.partition(": ")[0] for p in error.problems], error.lines, strict=True)) == [
        ("defaults.workers.comand", 5),
        ("defaults.links.delay", 3),
        ("defaults.bridges.mtu", 8),
        ("defaults.workers.forward", 6),
    ]


def test_names_of_nothing_are_told_with_all_other_errors(tmp_path: pathlib.Path) -> None:
    text = """\
[bridges.lan]
gateway = "nobody"
mtu = 1
[workers.web]
count = 2
links = ["nolan", "lan"]
ready.tcp = 0
ready.timeout = "soon"
[workers.db]
count = "two"
[[links]]
ends = ["web-2", "web-3"]
[[links]]
ends = ["db-7", { worker = "web" }]
[[links]]
ends = ["web-1", "web-1"]
weight = -1
"""
    error = refusal(text, tmp_path / "lab.toml")
    assert [problem.partition(", but")[0] for problem in error.located()] == [
        f"{tmp_path}/lab.toml:{line}"
        for line in (
            "3: bridges.lan.mtu: 1 is not a number of bytes from 68 to 65535",
            '8: workers.web.ready.timeout: "soon" is not a duration',
            "7: workers.web.ready.tcp: 0 is not a port",
            '10: workers.db.count: "two" is not a whole number from 1 to 100000',
            "17: links[2].weight: -1 is not a number above 0",
            "15: links[2]: web-1 is linked to itself",
            '6: workers.web.links[0]: there is no bridge "nolan"',
            '12: links[0].ends: there is no worker or bridge "web-3"',
            '14: links[1].ends: there is no worker or bridge "web"',
            '2: bridges.lan.gateway: there is no worker "nobody"',
        )
    ]


def test_words_of_yaml_that_are_no_text(tmp_path: pathlib.Path) -> None:
    text = (
        "workers:\n  on: {}\n  x y: {forward: 1}\n  b: {links: [{to: lan, mac: 52:54:00:12:34:56}]}\nbridges: {lan: }\n"
    )
    error = refusal(text, tmp_path / "lab.yaml")
    assert list(zip([p.partition(", then")[0] for p in error.problems], error.lines, strict=True)) == [
        ("bridges.lan: has no value: leave it out", 5),
        ("workers.True: is no text: put the key in quotes", 1),
        ('workers.x y: "x y" is not a name: a letter', 3),
        ("workers.x y.forward: 1 is neither true nor false", 3),
    ]
    topology = load("workers: {b: {links: [{to: l, mac: 52:54:00:12:34:56}]}}\nbridges: {l: {}}\n", tmp_path / "x.yaml")
    assert topology.workers["b"].links[0].mac == "52:54:00:12:34:56"


# -- graphs of other tools

GRAPH = """<graphml xmlns="http://graphml.graphdrawing.org/xmlns">
<key attr.name="Latitude" for="node" id="lat"/><key attr.name="Longitude" for="node" id="lon"/>
<key attr.name="hyperedge" for="node" id="h"/><key attr.name="LinkSpeedRaw" for="edge" id="s"/>
<key attr.name="label" for="node" id="l"/>
<graph edgedefault="undirected">%s</graph></graphml>"""


def node(name: str, **data: object) -> str:
    return (
        f'<node id="{name}">' + "".join(f'<data key="{key}">{value}</data>' for key, value in data.items()) + "</node>"
    )


def edge(a: str, b: str, **data: object) -> str:
    inner = "".join(f'<data key="{key}">{value}</data>' for key, value in data.items())
    return f'<edge source="{a}" target="{b}">{inner}</edge>'


def graph(path: pathlib.Path, *parts: str, **options: Any) -> Topology:
    path.write_text(GRAPH % "".join(parts))
    return Topology.load(path, **options)


def test_delay_by_coordinates(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "g.graphml"
    # A quarter of the way round the earth: 10,007.5 km, 50.04 ms.
    parts = (node("0", lat=0, lon=0), node("1", lat=0, lon=90), node("2"), edge("0", "1", s=1e9), edge("1", "2"))
    assert [link.delay for link in graph(path, *parts).links] == [None, None]
    for missing, expected in (("5ms", 0.005), (0.25, 0.25), ("none", None)):
        one, other = graph(path, *parts, delay="geo", missing=missing).links
        assert one.delay == pytest.approx(math.pi / 2 * 6371 / 200_000, abs=1e-9)
        assert other.delay == expected
    with pytest.raises(TopologyError, match="node 2 has no coordinates"):
        graph(path, *parts, delay="geo")
    assert [link.rate for link in graph(path, *parts, rate="label").links] == [1e9, None]
    same = (node("0", lat=1, lon=2), node("1", lat=1, lon=2), edge("0", "1"))
    assert graph(path, *same, delay="geo").links[0].delay is None


@pytest.mark.parametrize(
    ("part", "options", "problem"),
    [
        (node("1", lat="x", lon=0), {"delay": "geo"}, 'node 1: its Latitude "x"'),
        (node("1", lat=91, lon=0), {"delay": "geo"}, 'node 1: its Latitude "91"'),
        (node("1", lat=0, lon="nan"), {"delay": "geo"}, 'node 1: its Longitude "nan"'),
        (node("1", lat=0), {"delay": "geo"}, 'node 1: its Longitude ""'),
        (node("1") + edge("1", "0", s="-5"), {"rate": "label"}, 'edge 1-0: its LinkSpeedRaw "-5"'),
        (node("1") + edge("1", "0", s="inf"), {"rate": "label"}, 'edge 1-0: its LinkSpeedRaw "inf"'),
        (node("1"), {"delay": "far"}, 'delay: "far" is not "geo"'),
        (node("1"), {"delay": "geo", "missing": "soon"}, 'missing: "soon" is not a duration'),
        (node("1"), {"rate": "x"}, 'rate: "x" is not "label"'),
    ],
)
def test_wrong_attributes(part: str, options: dict[str, Any], problem: str, tmp_path: pathlib.Path) -> None:
    with pytest.raises(TopologyError) as raised:
        graph(tmp_path / "g.graphml", node("0"), part, **options)
    assert problem in str(raised.value)


def test_linked_segments_are_one(tmp_path: pathlib.Path) -> None:
    parts = [
        node("0"),
        node("1", h=1),
        node("2", h=1),
        node("3"),
        edge("0", "1"),
        edge("1", "2"),
        edge("2", "3"),
        edge("3", "3"),
    ]
    topology = graph(tmp_path / "g.graphml", *parts)
    assert len(topology.bridges) == 1
    assert topology.components() == [{"n0", "n3"}]
    assert topology.notes == ("segment 2 was joined with 1", "the edge of node 3 to itself was left out")


def test_options_are_for_graphs_alone(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "lab.toml"
    path.write_text("")
    with pytest.raises(TopologyError, match="GraphML alone"):
        Topology.load(path, delay="geo")


@needs_topologies
@pytest.mark.parametrize("path", sorted(TOPOLOGIES.glob("*.graphml")), ids=lambda path: path.stem)
def test_real_networks(path: pathlib.Path) -> None:
    source = nx.read_graphml(path, force_multigraph=True)
    topology = Topology.load(path, delay="geo", missing="1ms", rate="label")
    loops = sum(a == b for a, b, _ in source.edges)
    assert len(topology.workers) + len(topology.bridges) == source.number_of_nodes()
    assert len(topology.links) == source.number_of_edges() - loops
    assert len(topology.components()) == nx.number_connected_components(source)
    assert all(link.delay is None or 0 < link.delay < 0.11 for link in topology.links)
    assert sum("itself" in note for note in topology.notes) == loops


# -- random graphs


def test_random_graphs() -> None:
    for make in (
        lambda seed: Topology.erdos_renyi(20, 0.3, seed=seed),
        lambda seed: Topology.barabasi_albert(20, 2, seed=seed),
        lambda seed: Topology.watts_strogatz(20, 4, 0.5, seed=seed),
        lambda seed: Topology.waxman(20, beta=0.9, alpha=0.5, seed=seed),
        lambda seed: Topology.random_regular(20, 3, seed=seed),
    ):
        assert make(1) == make(1)
        assert make(1) != make(2)
        assert len(make(1).workers) == 20
        make(1).validate()
    assert len(Topology.random_regular(20, 3).links) == 30
    for wrong in (
        lambda: Topology.random_regular(5, 3),
        lambda: Topology.barabasi_albert(3, 9),
        lambda: Topology.waxman(0),
        lambda: Topology.waxman(5, alpha=0),
        lambda: Topology.waxman(5, beta=-1),
        lambda: Topology.erdos_renyi(5, 2),
        lambda: Topology.erdos_renyi(5, "x"),  # type: ignore[arg-type]
        lambda: Topology.watts_strogatz(5, 2, 3),
        lambda: Topology.watts_strogatz(5, 0, 0.5),
        lambda: Topology.random_regular(4, 1.0),  # type: ignore[arg-type]
    ):
        with pytest.raises(TopologyError):
            wrong()


# -- fuzzing

WORDS = st.sampled_from(
    [
        "name",
        "routing",
        "bridges",
        "workers",
        "links",
        "defaults",
        "ends",
        "to",
        "lan",
        "web",
        "count",
        "subnet",
        "command",
        "10.0.0.0/24",
        "shortest-path",
        "delay",
        "20ms",
        "ready",
        "tcp",
        "env",
        "namespaces",
        "net",
        "worker:web",
        "gateway",
    ]
)
LEAF = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), WORDS, st.text(max_size=6))
TREE = st.recursive(
    LEAF,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(WORDS | st.text(max_size=6), inner, max_size=4)
    ),
    max_leaves=25,
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(WORDS | st.text(max_size=4), TREE, max_size=5))
@pytest.mark.once
def test_any_mapping_is_loaded_or_refused(data: dict[str, Any]) -> None:
    try:
        topology = from_dict(data)
    except TopologyError as exc:
        assert all(problem.strip() for problem in exc.problems)
    else:
        assert from_dict(topology.to_dict()) == topology


@settings(max_examples=200, deadline=None)
@given(st.data())
@pytest.mark.once
def test_any_change_of_a_file_is_loaded_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    suffix = data.draw(st.sampled_from([".toml", ".yaml", ".json", ".graphml"]))
    source = {
        ".toml": TOML,
        ".yaml": yaml.safe_dump(Topology.star(3).to_dict()),
        ".json": Topology.fat_tree(2).to_json(),
        ".graphml": GRAPH % (node("0", l="x") + node("1") + edge("0", "1")),
    }[suffix]
    text = source.encode()
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text)))
        cut = data.draw(st.integers(0, 8))
        text = text[:at] + data.draw(st.binary(max_size=6)) + text[at + cut :]
    path = tmp_path_factory.getbasetemp() / f"fuzzed{suffix}"
    path.write_bytes(text)
    try:
        Topology.load(path)
    except TopologyError as exc:
        assert exc.source == str(path)


@pytest.mark.parametrize(
    ("suffix", "text"),
    [
        (".yaml", "a: &x [1]\nb: *x\n"),
        (".yaml", "workers: !!python/object/apply:os.system ['true']\n"),
        (".yaml", "name: !include /etc/passwd\n"),
        (".yaml", "[" * 5000),
        (".json", "[" * 100_000),
        (".toml", "x = " + "[" * 5000),
        (".graphml", '<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><x>&e;</x>'),
        (".graphml", "<graphml/>"),
        (".json", '{"name": NaN}'),
        (".json", '{"workers": {"a": {"user": 1e999}}}'),
    ],
)
def test_hostile_files_are_refused(suffix: str, text: str, tmp_path: pathlib.Path) -> None:
    refusal(text, tmp_path / f"lab{suffix}")


# -- the command


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "nsorch", *arguments], capture_output=True, text=True, check=False)


def test_validate(tmp_path: pathlib.Path) -> None:
    good, bad = tmp_path / "good.toml", tmp_path / "bad.toml"
    good.write_text("[workers.a]\n[workers.b]\n[[links]]\nends = ['a', 'b']\ndelay = '5ms'\n")
    bad.write_text("[workers.a]\nx = 1\n[workers.b]\ny = 1\n")
    assert (run("validate", str(good)).returncode, run("validate").returncode) == (0, 2)
    done = run("validate", str(good), str(bad), str(tmp_path / "none.toml"))
    assert done.returncode == 1
    assert done.stderr.splitlines()[:2] == [f"{bad}:2: workers.a.x: unknown key", f"{bad}:4: workers.b.y: unknown key"]
    assert f"{tmp_path}/none.toml: can't be read" in done.stderr
    results = json.loads(run("validate", "--json", str(good), str(bad)).stdout)
    assert [result["ok"] for result in results] == [True, False]
    assert results[1]["problems"][0] == {"line": 2, "problem": "workers.a.x: unknown key"}


def test_run_takes_the_options_of_graphs(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "g.graphml"
    path.write_text(GRAPH % (node("0") + node("1") + edge("0", "1")))
    done = run("run", str(path), "--delay", "geo", "--check")
    assert (done.returncode, "has no coordinates" in done.stderr) == (125, True)
    done = run("run", str(path), "--delay", "geo", "--missing", "none", "--check")
    assert (done.returncode, done.stderr) == (0, "") or "emulation" in done.stderr, done.stderr


def test_emulation_from_a_graph_is_refused_until_it_works() -> None:
    graph = nx.Graph()
    graph.add_node(0, Latitude=0, Longitude=0)
    graph.add_node(1, Latitude=1, Longitude=1)
    graph.add_edge(0, 1)
    assert Topology.from_networkx(graph, delay="geo").emulated() == ["links[0]"]
    assert not nsorch.Topology.from_networkx(graph).emulated()


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("x.json", '{"workers": {"a": {}, "a": {"forward": true}}}', ": workers.a: is given twice"),
        ("x.yaml", "workers:\n  a: {}\n  a: {forward: true}\n", ":3: workers.a: is given twice"),
        ("x.yaml", "workers: {a: {env: {x: '1', x: '2'}}}\n", ":1: workers.a.env.x: is given twice"),
        ("x.clab.yml", "topology:\n  nodes: {a: {kind: linux}, a: {kind: bridge}}\n", "topology.nodes.a: is given twice"),
        ("x.yaml", "a: !!timestamp foo", ':1: "foo" is not a YAML timestamp'),
        ("x.yaml", "\nname: !!int ''", ':2: "" is not a YAML int'),
        ("x.yaml", "name: !!bool foo", "is not a YAML bool"),
        ("x.yaml", "name: !!python/object/apply:os.system [true]", ":1: could not determine a constructor"),
        ("x.yaml", "name: a\0b", "not allowed"),
        ("x.yaml", "a: &a [1]\nb: *a", ":2: aliases are not allowed"),
        ("x.clab.yml", "topology: {nodes: &n [*n]}", "nested too deeply"),
        ("x.clab.yml", "a0: &a0 [x]\n" + "".join(f"a{n + 1}: &a{n + 1} [{f'*a{n}, ' * 9}]\n" for n in range(9)), "1000000 values"),
        ("x.json", '{"name": "a\\u0000b"}', "name: null character"),
        ("x.json", '{"workers": {"a": {"label": "\\ud800", "env": {"\\udfff": ""}}}}', "workers.a.label: '\\ud800' is not Unicode"),
        ("x.json", '{"workers": {"a": {}, "b": {}}, "links": [{"ends": ["a", "b"], "delay": 1' + "0" * 400 + "}]}", "links[0].delay"),
        ("x.toml", "name = 0x" + "f" * 5000, "name: a huge number is not a string"),
        ("x.toml", "".join(f"[workers.a{n}]\ncount = 50000\n" for n in range(3)), ":6: workers.a2.count: with the others'"),
        ("x.toml", "name = 'x'\nbridges = ?", ":2: Invalid value"),
        ("x.json", '{\n"name": }', ":2: Expecting value"),
        ("x.toml", "[workers.a]\nsysctls = { 'vm.swappiness' = 1 }", "workers.a.sysctls.vm.swappiness: belongs to no namespace"),
    ],
)  # fmt: skip
@pytest.mark.once
def test_refused_with_its_place(name: str, text: str, expected: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(TopologyError) as caught:
        Topology.load(tmp_path / name)
    assert expected in str(caught.value)
    assert str(tmp_path / name) in str(caught.value)


def test_what_no_file_can_hold_is_not_dumped(tmp_path: pathlib.Path) -> None:
    for command in ([b"\xff"], ["echo", "\ud800"], ["a", pathlib.Path("/\udcff")]):
        topology = Topology()
        topology.worker("a", command)
        (tmp_path / "x.toml").write_text("kept")
        with pytest.raises(TopologyError, match=r"workers\.a\.command: .* can't be written to a file"):
            topology.dump(tmp_path / "x.toml")
        assert (tmp_path / "x.toml").read_text() == "kept"
    topology = Topology()
    topology.worker("a", [b"echo", pathlib.Path("/x")])
    topology.dump(tmp_path / "x.toml")
    assert Topology.load(tmp_path / "x.toml").workers["a"].command == ("echo", "/x")


def graphml(body: str, namespace: str = ' xmlns="http://graphml.graphdrawing.org/xmlns"') -> str:
    return f'<?xml version="1.0"?><graphml{namespace}>{body}</graphml>'


PAIR = '<graph edgedefault="undirected"><node id="a"/><node id="b"/><edge source="a" target="b"/></graph>'


def load_graphml(text: str, tmp_path: pathlib.Path) -> Topology:
    (tmp_path / "x.graphml").write_text(text)
    return Topology.load(tmp_path / "x.graphml")


def test_graphml_without_its_namespace(tmp_path: pathlib.Path) -> None:
    topology = load_graphml(graphml(PAIR, ""), tmp_path)
    assert list(topology.workers) == ["n0", "n1"]
    assert len(topology.links) == 1


def test_defaults_of_graphml_keys(tmp_path: pathlib.Path) -> None:
    keys = (
        '<key id="k" for="edge" attr.name="weight"><default>7</default></key>'
        '<key id="l" for="node" attr.name="label"><default>nobody</default></key>'
    )
    topology = load_graphml(
        graphml(keys + PAIR.replace('<node id="b"/>', '<node id="b"><data key="l">B</data></node>')), tmp_path
    )
    assert topology.links[0].weight == 7
    assert [worker.label for worker in topology.workers.values()] == ["nobody", "B"]


def test_hyperedges_are_segments(tmp_path: pathlib.Path) -> None:
    ends = "".join(f'<endpoint node="{name}"/>' for name in "ab")
    topology = load_graphml(graphml(PAIR.replace("</graph>", f"<hyperedge>{ends}</hyperedge></graph>")), tmp_path)
    assert list(topology.bridges) == ["n2"]
    assert sorted(link.b.worker for link in topology.links if link.a.worker == "n2") == ["n0", "n1"]
    with pytest.raises(TopologyError, match='hyperedge 0: there is no node "z"'):
        load_graphml(graphml(PAIR.replace("</graph>", '<hyperedge><endpoint node="z"/></hyperedge></graph>')), tmp_path)
    key = '<key id="h" for="node" attr.name="hyperedge" attr.type="double"/>'
    pseudo = PAIR.replace('<node id="b"/>', '<node id="b"><data key="h">1.0</data></node>')
    assert list(load_graphml(graphml(key + pseudo), tmp_path).bridges) == ["n1"]


def test_large_segments_have_large_subnets() -> None:
    graph = nx.Graph()
    for hub, size in (("x", 3), ("y", 1500), ("z", 254)):
        graph.add_node(hub, hyperedge=1)
        graph.add_edges_from((hub, f"{hub}{number}") for number in range(size))
    topology = Topology.from_networkx(graph)
    topology.validate()
    subnets = [bridge.subnet[0] for bridge in topology.bridges.values()]
    assert [subnet.prefixlen for subnet in subnets] == [24, 21, 24]
    assert not any(a.overlaps(b) for a in subnets for b in subnets if a is not b)


def test_of_several_graphs_the_first(tmp_path: pathlib.Path) -> None:
    topology = load_graphml(graphml(PAIR + PAIR), tmp_path)
    assert topology.notes == ("of 2 graphs only the first was read",)


def test_directions_and_nested_graphs_are_noted(tmp_path: pathlib.Path) -> None:
    directed = PAIR.replace('edgedefault="undirected"', 'edgedefault="directed"')
    topology = load_graphml(graphml(directed), tmp_path)
    assert topology.notes == ("the edges' directions are left out: each is a link both ways",)
    nested = PAIR.replace('<node id="b"/>', '<node id="b"><graph id="b:"><node id="b::0"/></graph></node>')
    topology = load_graphml(graphml(nested), tmp_path)
    assert topology.notes == ('the nodes of the graph in node "b" stand beside it',)
    assert [worker.label for worker in topology.workers.values()] == ["a", "b", "b::0"]


def test_nodes_of_networkx_stay_apart_and_none_is_no_attribute() -> None:
    graph: nx.Graph[Any] = nx.Graph()
    graph.add_node(1, label=None, Latitude=None)
    graph.add_node("1", label="x")
    graph.add_edge(1, "1", weight=None, LinkSpeedRaw=None, LinkLabel=None)
    topology = Topology.from_networkx(graph, delay="geo", missing="none", rate="label")
    assert [worker.label for worker in topology.workers.values()] == ["0: 1", "x"]
    assert [(link.weight, link.rate, link.label) for link in topology.links] == [(1.0, None, None)]
    assert Topology.from_networkx(nx.DiGraph([(0, 1)])).notes[0].startswith("the edges' directions")


def test_labels_that_no_file_can_hold_are_not_dumped(tmp_path: pathlib.Path) -> None:
    for label in ("\ud800", "x\0"):
        topology = Topology()
        topology.worker("a", label=label)
        for suffix in ("toml", "yaml", "json"):
            with pytest.raises(TopologyError, match=r"workers\.a\.label: "):
                topology.dump(tmp_path / f"x.{suffix}")
            assert not (tmp_path / f"x.{suffix}").exists()
