"""Archives that want out, and damaged ones: refused by name, with nothing written outside and nothing left."""

from __future__ import annotations

import gzip
import io
import json
import os
import pathlib
import shutil
import stat
import tarfile
import tempfile
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from images_support import Layout, digest, entry, hard, link, tarball

import nsorch

Entries = list[tuple[tarfile.TarInfo, bytes]]


def unpack(source: pathlib.Path, target: pathlib.Path, **options: Any) -> nsorch.Unpacked:
    async def run() -> nsorch.Unpacked:
        return await nsorch.unpack(source, target, **options)

    return anyio.run(run)


@pytest.fixture
def room(tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / "out").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "canary").write_text("safe")
    return tmp_path


def seen(top: pathlib.Path) -> list[tuple[str, int, bytes]]:
    found = []
    for path in sorted(top.rglob("*")):
        status = path.lstat()
        readable = stat.S_ISREG(status.st_mode) and os.access(path, os.R_OK)
        found.append((str(path), status.st_mode, path.read_bytes() if readable else b""))
    return found


DEEP = "/".join(["d"] * 300)
REFUSED: dict[str, tuple[Entries, str]] = {
    "absolute": ([entry("/tmp/pwned", b"x")], "/tmp/pwned' is absolute"),
    "climbing": ([entry("a/../../outside/pwned", b"x")], "leads outside"),
    "climbing within": ([entry("a/../b", b"x")], "leads outside"),
    "through a link that climbs": ([link("l", "../../outside"), entry("l/pwned", b"x")], "l/pwned' leads outside"),
    "through an absolute link": ([link("l", "{outside}"), entry("l/pwned", b"x")], "where nothing is"),
    "through two links": ([link("a", ".."), link("b", "a/.."), entry("b/pwned", b"x")], "leads outside"),
    "through a link to itself": ([link("l", "l"), entry("l/x", b"x")], "too many symbolic links"),
    "through a file": ([entry("f", b"f"), entry("f/x", b"x")], "'f' is not a directory"),
    "hard link out": ([hard("h", "../outside/canary")], "leads outside"),
    "hard link to an absolute name": ([hard("h", "{outside}/canary")], "is absolute"),
    "hard link through a link": ([link("l", "../../outside"), hard("h", "l/canary")], "leads outside"),
    "hard link to nothing": ([hard("h", "none")], "which isn't there"),
    "hard link to the root": ([hard("h", ".")], "hard link to the root"),
    "hard link to a folder": ([entry("d"), hard("h", "d")], "which isn't there"),
    "whiteout of ..": ([entry("d/.wh...", b"")], "whiteout of no file"),
    "whiteout of .": ([entry(".wh..", b"")], "whiteout of no file"),
    "whiteout of nothing": ([entry(".wh.", b"")], "whiteout of no file"),
    "whiteout through a link": ([link("l", "../../outside"), entry("l/.wh.canary", b"")], "leads outside"),
    "opaque through a link": ([link("l", "../../outside"), entry("l/.wh..wh..opq", b"")], "leads outside"),
    "a root that is a file": ([entry(".", b"x")], "stands for the root"),
    "too deep": ([entry(DEEP, b"x")], "nested too deeply"),
    "long name": ([entry("n" * 300, b"x")], "File name too long"),
    "very long name": ([entry("n/" * 3000, b"x")], "can't be the name of a file"),
}
if os.geteuid() == 0:
    REFUSED["impossible owner"] = ([entry("f", b"x", uid=2**40)], "impossible owner")


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("layers", [1, 2])
def test_refused(case: str, layers: int, room: pathlib.Path) -> None:
    entries, text = REFUSED[case]
    for info, _ in entries:
        info.linkname = info.linkname.replace("{outside}", str(room / "outside"))
    layout = Layout(room / "image")
    parts = [entries] if layers == 1 else [entries[:-1], entries[-1:]]
    layout.add(layout.manifest(*(tarball(*part) for part in parts))).write()
    before = seen(room)
    with pytest.raises(nsorch.ImageError, match="entry") as caught:
        unpack(layout.path, room / "out" / "rootfs")
    assert text in str(caught.value)
    assert caught.value.entry.rstrip("/") == entries[-1][0].name.rstrip("/")
    assert seen(room) == before


def test_a_link_is_replaced_not_followed(room: pathlib.Path) -> None:
    """A file over a symbolic link, and a directory over one: the link goes, what it leads to stays."""
    outside = str(room / "outside")
    source = room / "x.tar"
    source.write_bytes(
        tarball(
            link("l", f"{outside}/canary"), entry("l", b"mine"), link("d", outside), entry("d"), entry("d/canary", b"mine"),
            link("m", f"{outside}/canary"), entry("m", b"", type=tarfile.FIFOTYPE, mode=0o777),
        )
    )  # fmt: skip
    unpack(source, room / "out" / "rootfs")
    assert (room / "outside" / "canary").read_text() == "safe"
    assert (room / "out" / "rootfs" / "d" / "canary").read_text() == "mine"
    assert stat.S_IMODE((room / "outside" / "canary").stat().st_mode) == 0o644


def corrupt_blob(layout: Layout, _: dict[str, Any]) -> None:
    for path in (layout.path / "blobs" / "sha256").iterdir():
        if path.read_bytes()[:2] == b"\x1f\x8b":
            path.write_bytes(path.read_bytes()[:-1] + b"?")


def replaced(**values: Any) -> Any:
    """Of the layer's descriptor."""

    def change(layout: Layout, manifest: dict[str, Any]) -> None:
        manifest["layers"][0].update(values)
        layout.manifests = [layout.blob(json.dumps(manifest).encode())]
        layout.write()

    return change


def with_diff_id(diff_id: str) -> Any:
    return with_config({"rootfs": {"type": "layers", "diff_ids": [diff_id]}})


def with_config(config: dict[str, Any]) -> Any:
    def change(layout: Layout, manifest: dict[str, Any]) -> None:
        manifest["config"] = layout.blob(json.dumps(config).encode())
        replaced()(layout, manifest)

    return change


def fifo(layout: Layout, manifest: dict[str, Any]) -> None:
    path = layout.path / "blobs" / "sha256" / manifest["layers"][0]["digest"].partition(":")[2]
    path.unlink()
    os.mkfifo(path)


DAMAGED: dict[str, tuple[Any, str]] = {
    "contents": (corrupt_blob, "have another digest"),
    "size": (replaced(size=5), "instead of 5"),
    "digest that climbs": (replaced(digest="sha256:../../../outside/canary"), "no sha256"),
    "unknown digest": (replaced(digest="md5:" + "0" * 32), "no sha256"),
    "missing": (replaced(digest="sha256:" + "0" * 64), "can't be read"),
    "diff_id": (with_diff_id(digest(b"other")), "contents are not"),
    "diff_id of sha512": (with_diff_id("sha512:" + "0" * 128), "contents are not"),
    "unknown diff_id": (with_diff_id("md5:" + "0" * 32), "no sha256"),
    "a command that is no list": (with_config({"config": {"Cmd": "sh"}}), "Cmd of the configuration is no list"),
    "a directory that is no text": (with_config({"config": {"WorkingDir": ["/"]}}), "WorkingDir .* is no string"),
    "a user that is no text": (with_config({"config": {"User": 5}}), "User of the configuration is no string"),
    "encrypted": (replaced(mediaType="application/vnd.oci.image.layer.v1.tar+gzip+encrypted"), "encrypted"),
    "fifo": (fifo, "is no file"),
    "no index": (lambda layout, _: (layout.path / "index.json").write_text("[]"), "no JSON object"),
    "index": (lambda layout, _: (layout.path / "index.json").write_text("{}"), "no list of manifests"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_images(case: str, room: pathlib.Path) -> None:
    damage, text = DAMAGED[case]
    layout = Layout(room / "image")
    descriptor = layout.manifest(tarball(entry("a", b"a" * 1000)))
    layout.add(descriptor).write()
    blob = layout.path / "blobs" / "sha256" / descriptor["digest"].partition(":")[2]
    damage(layout, json.loads(blob.read_text()))
    with pytest.raises(nsorch.ImageError, match=text):
        unpack(layout.path, room / "out" / "rootfs")
    assert os.listdir(room / "out") == []


def raw_header(**attributes: Any) -> bytes:
    return entry("x", b"", **attributes)[0].tobuf(tarfile.GNU_FORMAT)


ZEROS = bytes(1024)


def saved(layers: list[str], *more: tuple[tarfile.TarInfo, bytes]) -> bytes:
    """As ``docker save`` wrote it, of an image with one layer."""
    config = json.dumps({"rootfs": {"diff_ids": [digest(b"")]}}).encode()
    about = json.dumps([{"Config": "c.json", "RepoTags": None, "Layers": layers}]).encode()
    return tarball(entry("manifest.json", about), entry("c.json", config), *more)


def sparse(size: int, parts: str, contents: bytes = b"") -> tuple[tarfile.TarInfo, bytes]:
    """As GNU tar writes it: the map comes before the contents."""
    headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": "s",
        "GNU.sparse.realsize": str(size),
    }
    return entry("GNUSparseFile.0/s", parts.encode() + bytes(-len(parts) % 512) + contents, pax_headers=headers)


def old_sparse() -> bytes:
    """The header of an older form, whose map goes on in the blocks after it."""
    header = bytearray(raw_header(type=tarfile.GNUTYPE_SPARSE))
    header[482] = 1
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def packed(folder: pathlib.Path, *more: tuple[tarfile.TarInfo, bytes]) -> bytes:
    """An image without its blobs."""
    layout = Layout(folder)
    layout.add(layout.manifest(tarball(entry("secret", b"s")))).write()
    files = [entry(name, (folder / name).read_bytes()) for name in ("oci-layout", "index.json")]
    return tarball(*files, *more)


ESCAPE = "\x1b]0;title\x07\n"


def test_no_name_moves_the_cursor(room: pathlib.Path) -> None:
    """What notes and errors show of an image is text for a terminal."""
    (room / "x.tar").write_bytes(tarball(entry(f"n{ESCAPE}", b"", pax_headers={f"SCHILY.xattr.a{ESCAPE}": "x"})))
    notes = unpack(room / "x.tar", room / "out" / "rootfs", squash=True).notes
    layout = Layout(room / "image")
    layout.add(layout.manifest(tarball(entry("a", b""))), tag=ESCAPE).write()
    with pytest.raises(nsorch.ImageError, match="there is no tag") as caught:
        unpack(layout.path, room / "out" / "other", tag="none")
    shown = [*notes, str(caught.value)]
    assert len(shown) == 2
    assert all(r"\x1b]0;title" in each and each.isprintable() for each in shown)


def test_images_that_are_packed_with_links_to_others(room: pathlib.Path) -> None:
    (room / "x.tar").write_bytes(packed(room / "other", link("blobs", str(room / "other" / "blobs"))))
    with pytest.raises(nsorch.ImageError, match="sha256:[0-9a-f]*' leads outside"):
        unpack(room / "x.tar", room / "out" / "rootfs")
    index = room / "other" / "index.json"
    (room / "x.tar").write_bytes(tarball(entry("oci-layout", b"{}"), link("index.json", str(index))))
    with pytest.raises(nsorch.ImageError, match="'index.json' leads outside"):
        unpack(room / "x.tar", room / "out" / "rootfs")
    assert os.listdir(room / "out") == []


def test_holes_take_neither_time_nor_room(room: pathlib.Path) -> None:
    """Of 200 GB, which nobody writes, nor waits for."""
    size = 200 << 30
    for parts in (f"2\n4096\n3\n{size - 2}\n2\n", f"3\n4096\n3\n{size - 2}\n2\n{size}\n0\n"):
        (room / "x.tar").write_bytes(tarball(sparse(size, parts, b"abcde"), entry("after", b"x")))
        done = unpack(room / "x.tar", room / "out" / "rootfs")
        file = room / "out" / "rootfs" / "s"
        assert (done.size, file.stat().st_size) == (6, size)
        assert file.stat().st_blocks * 512 <= 1 << 20
        with open(file, "rb") as opened:
            assert opened.read(5000).strip(b"\0") == b"abc"
            assert os.pread(opened.fileno(), 9, size - 3) == b"\0de"
        shutil.rmtree(room / "out" / "rootfs")
    (room / "x.tar").write_bytes(tarball(sparse(size, parts, b"abcde"), entry("after", bytes(20_000))))
    with pytest.raises(nsorch.ImageError, match="larger than 20004 bytes"):
        unpack(room / "x.tar", room / "out" / "rootfs", max_size=20_004)
    assert unpack(room / "x.tar", room / "out" / "rootfs", max_size=20_005).size == 20_005


BROKEN: dict[str, tuple[bytes, str]] = {
    "cut in an entry": (tarball(entry("a", b"a" * 5000))[:2048], "damaged|cut off"),
    "cut between entries": (tarball(entry("a", b"a" * 512))[:1024], "end mark"),
    "damaged in the middle": (tarball(entry("a", b"")) [:512] + b"?" * 512 + ZEROS, "damaged"),
    "empty": (b"", "end mark|damaged"),
    "no archive": (b"hello world" * 1000, "damaged"),
    "cut gzip": (gzip.compress(os.urandom(5000) + ZEROS)[:3000], "damaged"),
    "wrong gzip": (gzip.compress(tarball(entry("a", b"a")))[:-8] + bytes(8), "damaged"),
    "negative size": (raw_header(size=-512) + ZEROS, "header of -512|damaged"),
    "huge header": (raw_header(type=tarfile.GNUTYPE_LONGNAME, size=1 << 33) + ZEROS, "has a header of"),
    "huge pax header": (raw_header(type=tarfile.XHDTYPE, size=1 << 33) + ZEROS, "has a header of"),
    "endless long names": (raw_header(type=tarfile.GNUTYPE_LONGNAME, size=0) * 5000 + ZEROS, "damaged"),
    "huge file": (raw_header(size=1 << 40) + ZEROS, "larger than"),
    "a map whose parts overlap": (tarball(sparse(9, "2\n0\n5\n4\n5\n", b"x" * 10)), "parts overlap"),
    "a map with negative parts": (tarball(sparse(9, "1\n5\n-5\n")), "parts overlap|damaged"),
    "a map beyond its end": (tarball(sparse(9, "1\n5\n5\n", b"x" * 5)), "beyond its end"),
    "an endless map": (tarball(sparse(9, "9999999\n" + "0\n" * 600_000)), "has a map of more than"),
    "a map without its contents": (tarball(sparse(9, "1\n0\n9\n"))[:2048], "damaged|cut off|end mark"),
    "an endless map of GNU's": (old_sparse() + (bytes(504) + b"\1" + bytes(7)) * 2100, "has a map of more than"),
    "an image's archive": (tarball(entry("oci-layout", b"{}"), entry("index.json", b"{}")), "no list of manifests"),
    "a saved image outside": (saved(["../../secret"]), "'../../secret' leads outside"),
    "a saved image by an absolute path": (saved(["/etc/passwd"]), "'/etc/passwd' leads outside"),
    "a saved image by a link": (saved(["x"], link("x", "/etc/passwd")), "'x' leads outside"),
    "a saved image without its layer": (saved(["x"]), "x can't be read"),
    "a saved image of other layers": (saved(["x"], entry("x", tarball(entry("a", b"")))), "layer x is damaged"),
    "a saved image of too many layers": (saved(["x", "y"]), "2 layers, and the configuration 1"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_broken_archives(case: str, room: pathlib.Path) -> None:
    data, text = BROKEN[case]
    (room / "x.tar").write_bytes(data)
    with pytest.raises(nsorch.ImageError, match=text):
        unpack(room / "x.tar", room / "out" / "rootfs")
    assert os.listdir(room / "out") == []


def test_too_large(room: pathlib.Path) -> None:
    (room / "x.tar.gz").write_bytes(gzip.compress(tarball(*(entry(f"z{n}", bytes(100_000)) for n in range(20)))))
    with pytest.raises(nsorch.ImageError, match="larger than 1000000 bytes"):
        unpack(room / "x.tar.gz", room / "out" / "rootfs", max_size=1_000_000)
    unpack(room / "x.tar.gz", room / "out" / "rootfs", max_size=2_000_000)


# Names that meet each other, so that layers replace, hide and lead through what others have made.
PART = st.sampled_from(["a", "b", "c", "..", ".", ".wh.a", ".wh.b", ".wh..wh..opq", ".wh...", "", "a" * 20])
NAME = st.lists(PART, min_size=1, max_size=4).map("/".join) | st.just("/a") | st.text(max_size=5)
TARGET = NAME | st.sampled_from(
    ["../../outside", "/", "..", "a/../..", "OUTSIDE", "OUTSIDE/canary", "../../../../../.."]
)
MODE = st.sampled_from([0, 0o200, 0o444, 0o555, 0o644, 0o755, 0o4755])
KIND = st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, b"Z"])
ENTRY = st.tuples(NAME, KIND, TARGET, MODE)


@pytest.mark.once
@given(st.lists(st.lists(ENTRY, min_size=1, max_size=8), min_size=1, max_size=3))
@settings(max_examples=150, deadline=None)
def test_any_layers_stay_inside(layers: list[list[tuple[str, bytes, str, int]]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        room = pathlib.Path(folder)
        (room / "out").mkdir()
        (room / "outside").mkdir()
        (room / "outside" / "canary").write_text("safe")
        outside = str(room / "outside")
        layout = Layout(room / "image")
        archives = [
            tarball(
                *(
                    entry(name, b"data" if kind == tarfile.REGTYPE else None, type=kind, mode=mode,
                          linkname=target.replace("OUTSIDE", outside))
                    for name, kind, target, mode in layer
                )
            )
            for layer in layers
        ]  # fmt: skip
        layout.add(layout.manifest(*archives)).write()
        before = seen(room)
        try:
            unpack(layout.path, room / "out" / "rootfs")
        except nsorch.ImageError:
            assert seen(room) == before
        else:
            assert os.listdir(room / "out") == ["rootfs"]
            for path, _, names in os.walk(room / "out" / "rootfs"):
                assert not [name for name in names if name.startswith(".wh.")], path
                os.chmod(path, 0o700)
            assert [each for each in seen(room) if "/out/" not in each[0]] == [
                each for each in before if "/out/" not in each[0]
            ]
        for path, names, _ in os.walk(room / "out"):
            for name in names:
                if not os.path.islink(f"{path}/{name}"):
                    os.chmod(f"{path}/{name}", 0o700)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_any_damage_is_named(data: st.DataObject) -> None:
    """Some bytes of a good archive are changed: it is unpacked, or refused with our own error."""
    good = bytearray(
        tarball(
            entry("etc"), entry("etc/f" * 40, b"x" * 600), link("l", "etc"), hard("h", "etc/f" * 40), entry("z", b"z")
        )
    )
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    del good[data.draw(st.integers(1, len(good))) :]
    with tempfile.TemporaryDirectory() as folder:
        room = pathlib.Path(folder)
        (room / "out").mkdir()
        (room / "x.tar").write_bytes(bytes(good))
        try:
            unpack(room / "x.tar", room / "out" / "rootfs", max_size=1_000_000)
        except nsorch.ImageError:
            assert os.listdir(room / "out") == []
        for path, names, _ in os.walk(room / "out"):
            for name in names:
                if not os.path.islink(f"{path}/{name}"):
                    os.chmod(f"{path}/{name}", 0o700)


def test_support_writes_what_it_says() -> None:
    with tarfile.open(fileobj=io.BytesIO(tarball(entry("/a/../b", b"x")))) as archive:
        assert archive.getnames() == ["/a/../b"]
