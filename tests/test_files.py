"""Topology files: lines of errors, templates, defaults, what is refused, and files that are fuzzed."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import jsonschema
import networkx as nx
import pytest
import yaml
from files_support import GRAPH, edge, load, node, refusal
from hypothesis import given, settings
from hypothesis import strategies as st

import nsorch
from nsorch import Topology, TopologyError
from nsorch.topology.positions import json_lines, toml_lines, yaml_lines
from nsorch.topology.specs import To
from nsorch.topology.structure import from_dict

TOP = pathlib.Path(__file__).parent.parent
TOPOLOGIES = TOP.parent / "shared" / "topologies"
needs_topologies = pytest.mark.skipif(not TOPOLOGIES.is_dir(), reason="../shared/topologies is not here")


SCHEMA = jsonschema.Draft202012Validator(Topology.json_schema())


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


def test_lines_of_json(tmp_path: pathlib.Path) -> None:
    text = """{
  "bridges": {"lan": {}}, "workers": {
    "web": {"links": [{"to": "lan",
                       "delay": "20 parsecs"}], "env": {"\\u0041\\/\\ud83d\\ude00": "]}", "":
                       1}},
    "x": {"comand": ["a"]}
} }"""
    error = refusal(text, tmp_path / "lab.json")
    assert [(problem.partition(": ")[0], line) for problem, line in zip(error.problems, error.lines, strict=True)] == [
        ("workers.web.links[0].delay", 4),
        ("workers.web.env", 4),
        ("workers.x.comand", 6),
    ]


def test_no_lines_of_what_is_nested_too_deeply(tmp_path: pathlib.Path) -> None:
    error = refusal(f'{{"nonsense": {"[" * 600}{"]" * 600}}}', tmp_path / "lab.json")
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
    assert set(json_lines(json.dumps(data, indent=1))) == set(json_lines(json.dumps(data))) == paths_of(data)


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


# -- errors


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
        (
            {"bridges": {"lan": {"subnet": "10.0.0.1/24"}}},
            'bridges.lan.subnet: "10.0.0.1/24" is not a network: that of this address is 10.0.0.0/24',
        ),
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
            "7: workers.web.ready.tcp: 0 is not a port: a whole number from 1 to 65535",
            '10: workers.db.count: "two" is not a whole number from 1 to 100000',
            "17: links[2].weight: -1 is not a number above 0",
            "15: links[2]: web-1 is linked to itself",
            '6: workers.web.links[0]: there is no bridge "nolan"',
            '12: links[0].ends: there is no worker or bridge "web-3"',
            '14: links[1].ends: there is no worker or bridge "web"',
            '2: bridges.lan.gateway: there is no worker "nobody"',
        )
    ]


@pytest.mark.parametrize(
    ("part", "paths"),
    [
        ('bridges = { b = { subnet = 5, gateway = "x y", arp = "x", stp = 5 } }', "b.subnet b.gateway b.arp b.stp"),
        ("bridges = { b = { vlan_aware = 5, vlans = { 9 = 5, 5000 = [] } } }", "b.vlan_aware b.vlans.9 b.vlans"),
        ('bridges = { b = { vlan_aware = true, vlans = { 9 = "10.0.0.0/24", 09 = "10.1.0.0/24" } } }', "b.vlans.09"),
        ('workers = { b = { count = 0, command = "x" } }', "b.count b.command"),
        ("workers = { b = { links = [{ to = 5, mtu = 5 }] } }", "b.links[0].to b.links[0].mtu"),
        (
            'workers = { b = { routes = [{ to = "x", via = "y", dev = "" }] } }',
            "b.routes[0].to b.routes[0].via b.routes[0].dev",
        ),
        ("workers = { b = { routes = [{ via = 5 }] } }", "b.routes[0].to b.routes[0].via"),
        (
            'workers = { b = { env = { A = 5, B = 6 }, namespaces = { net = "x", uts = "y" } } }',
            "b.env.A b.env.B b.namespaces.net b.namespaces.uts",
        ),
        (
            'workers = { b = { user = "", cwd = "", hostname = "", domainname = "", oom_score_adj = 5000 } }',
            "b.user b.cwd b.hostname b.domainname b.oom_score_adj",
        ),
        ("workers = { b = { cwd = 5, uid_map = [[5]], gid_map = 5 } }", "b.cwd b.uid_map[0] b.gid_map"),
        ("workers = { b = { rootfs = { lower = 5, size = 0, x = 5 } } }", "b.rootfs.lower b.rootfs.size b.rootfs.x"),
        (
            'workers = { b = { mounts = [{ type = "tmpfs", size = 0, mode = "9", exec = 5, x = 5 }] } }',
            "b.mounts[0].dst b.mounts[0].size b.mounts[0].mode b.mounts[0].exec b.mounts[0].x",
        ),
        (
            'workers = { b = { limits = { pids = 0, cpus = 0, x = 5, io = { "8:0" = { rbps = 0, x = 5 }, y = {} } } } }',
            "b.limits.pids b.limits.cpus b.limits.x b.limits.io.8:0.rbps b.limits.io.8:0.x b.limits.io",
        ),
        ("workers = { b = { time_offsets = { monotonic = true, x = 5 } } }", "b.time_offsets.monotonic b.time_offsets"),
        ('workers = { b = { rlimits = { RLIMIT_CORE = "x", cpu = "y" } } }', "b.rlimits.RLIMIT_CORE b.rlimits.cpu"),
        (
            'workers = { b = { interfaces = [{ kind = "vlan", name = "", parent = 5, id = 0 }] } }',
            "b.interfaces[0].name b.interfaces[0].parent b.interfaces[0].id",
        ),
        (
            'links = [{ ends = [{ worker = 5, mac = "x" }, "b"], gilbert_elliott = { r = 2, x = 5 } }]',
            "[0].ends [0].ends[0].worker [0].ends[0].mac [0].gilbert_elliott.p [0].gilbert_elliott.r [0].gilbert_elliott.x",
        ),
    ],
)
def test_all_that_is_wrong_of_a_part_is_told_at_once(part: str, paths: str, tmp_path: pathlib.Path) -> None:
    """Each by itself, whatever else is wrong beside it, in the line where it stands."""
    error = refusal(f"\n{part}\n", tmp_path / "lab.toml")
    top = part.partition(" ")[0]
    expected = [f"{top}{'' if path[0] == '[' else '.'}{path}" for path in paths.split()]
    assert sorted({problem.partition(": ")[0] for problem in error.problems}) == sorted(expected)
    assert set(error.lines) == {2}


@pytest.mark.parametrize(
    ("part", "problem"),
    [
        ('workers.nat.nat = { outside = "x", kind = "y" }', 'workers.nat.nat.kind: "y" is none of masquerade'),
        ("workers.env.env.A = 5", "workers.env.env.A: 5 is not a string"),
        ("workers.ready.ready.tcp = 5", "workers.ready.ready: a worker without a command is never ready"),
        ("bridges.mtu.mtu = 5", "bridges.mtu.mtu: 5 is not a number of bytes"),
        ("bridges.web = {}\nworkers.web = {}", 'workers.web: there is a worker or bridge "web" already'),
    ],
)
def test_names_that_are_words_of_files(part: str, problem: str, tmp_path: pathlib.Path) -> None:
    error = refusal(part, tmp_path / "lab.toml")
    assert len(error.problems) == 1
    assert error.problems[0].startswith(problem)
    assert error.lines == (part.count("\n") + 1,)


def test_what_is_wrong_of_all_copies_is_told_once(tmp_path: pathlib.Path) -> None:
    text = """
[workers.web]
count = 500
links = [
    "lam",
]
interfaces = [{ kind = "vlan", name = "v0", parent = "eth7", id = 5 }]

[workers.web-6]
%s
"""
    wrong = ['workers.web.links[0]: there is no bridge "lam"']
    wrong += ['workers.web.interfaces[0].parent: the worker has no interface "eth7"']
    error = refusal(text.replace("[workers.web-6]\n%s\n", ""), tmp_path / "lab.toml")
    assert list(zip(error.problems, error.lines, strict=True)) == [(wrong[0], 5), (wrong[1], 7)]
    of_one = """
[workers.web]
count = 3
interfaces = [{ kind = "dummy", name = "d0" }]
[[links]]
ends = ["web-2:d0", "other"]
[workers.other]
"""
    error = refusal(of_one, tmp_path / "lab.toml")
    assert error.problems == ('links[0].ends[0].name: "d0" is the name of workers.web-2.interfaces[0] already',)


def test_each_problem_is_a_line_that_no_terminal_obeys(tmp_path: pathlib.Path) -> None:
    text = """
        bridges = { b = { arp = "\\u001b[31m" } }
        workers = { w = { "\\n" = 5, isolation = "\\u202e", interfaces = [{ kind = "dummy", name = "a\\nb" }] } }
    """
    assert [problem.partition(" is none")[0] for problem in refusal(text, tmp_path / "lab.toml").problems] == [
        "bridges.b.arp: '\\x1b[31m'",
        "workers.w.\\n: unknown key",
        'workers.w.isolation: "\\u202e"',
        "workers.w.interfaces[0].name: 'a\\nb' can't be the name of an interface",
    ]
    graph = nx.Graph([("a\nb", "a\nb")])
    assert Topology.from_networkx(graph).notes == ("the edge of node a\\nb to itself was left out",)
    assert len(str(refusal(f"bridges = {{ b = {{ subnet = '{'9' * 400}' }} }}", tmp_path / "long.toml"))) < 300


def test_words_of_yaml_that_are_no_text(tmp_path: pathlib.Path) -> None:
    text = (
        "workers:\n  on: {}\n  x y: {forward: 1}\n  b: {links: [{to: lan, mac: 52:54:00:12:34:56}]}\nbridges: {lan: }\n"
    )
    error = refusal(text, tmp_path / "lab.yaml")
    assert list(zip([p.partition(", then")[0] for p in error.problems], error.lines, strict=True)) == [
        ("bridges.lan: has no value: without any keys it is {}", 5),
        ("workers.True: is no text: put the key in quotes", 1),
        ('workers.x y: "x y" is not a name: a letter', 3),
        ("workers.x y.forward: 1 is neither true nor false", 3),
    ]
    topology = load("workers: {b: {links: [{to: l, mac: 52:54:00:12:34:56}]}}\nbridges: {l: {}}\n", tmp_path / "x.yaml")
    assert topology.workers["b"].links[0].mac == "52:54:00:12:34:56"


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


@pytest.mark.once
def test_validate(tmp_path: pathlib.Path) -> None:
    good, bad = tmp_path / "good.toml", tmp_path / "bad.toml"
    lan = "[bridges.lan]\n[workers.a]\nlinks = ['lan']\n[workers.b]\nlinks = ['lan']\n"
    good.write_text(f"{lan}[[links]]\nends = ['a', 'b']\ndelay = '5ms'\n")
    bad.write_text("[workers.a]\nx = 1\n[workers.b]\ny = 1\n")
    assert (run("validate", str(good)).returncode, run("validate").returncode) == (0, 2)
    done = run("validate", str(good), str(bad), str(tmp_path / "none.toml"))
    assert done.returncode == 1
    assert done.stderr.splitlines()[:2] == [f"{bad}:2: workers.a.x: unknown key", f"{bad}:4: workers.b.y: unknown key"]
    assert f"{tmp_path}/none.toml: can't be read" in done.stderr
    results = json.loads(run("validate", "--json", str(good), str(bad)).stdout)
    assert [result["ok"] for result in results] == [True, False]
    assert (results[0]["workers"], results[0]["bridges"], results[0]["links"]) == (2, 1, 3)
    assert results[1]["problems"][0] == {"line": 2, "problem": "workers.a.x: unknown key"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read any file")
def test_what_may_not_be_read_is_no_wrong_usage(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "lab.toml"
    path.touch(0o200)
    for arguments, status in ((["run", str(path)], 125), (["validate", str(path)], 1), (["graph", str(path)], 125)):
        done = run(*arguments)
        assert (done.returncode, "can't be read: Permission denied" in done.stderr) == (status, True), done.stderr


@pytest.mark.once
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
        ("x.toml", "name = 'x'\nbridges = ?", ":2: Invalid value (column 11)"),
        ("x.toml", "name = 'x'\n[workers.a]\nlinks = ['lan'\n", ":3: Unclosed array"),
        ("x.json", '{\n"name": }', ":2: Expecting value (column 9)"),
        ("x.yaml", "name: x\n  y: [\n", ":2: mapping values are not allowed here (column 4)"),
        ("x.other", "name = 'x'", '".other" is none of the known suffixes'),
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
    for command in ([b"\xff"], ["echo", "\udcff"], ["a", pathlib.Path("/\udcff")]):
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
