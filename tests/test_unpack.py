"""Images and tarballs become directories, layer by layer."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import json
import lzma
import os
import pathlib
import signal
import stat
import subprocess
import sys
import tarfile

import anyio
import pytest
from images_support import Layout, digest, entry, hard, link, tarball

import nsorch

pytestmark = pytest.mark.anyio
ROOT = os.geteuid() == 0


def listed(top: pathlib.Path) -> dict[str, str]:
    """Each path with what it is: the contents of a file, the target of a link."""
    found = {}
    for path in sorted(top.rglob("*")):
        name = str(path.relative_to(top))
        if path.is_symlink():
            found[name] = f"-> {os.readlink(path)}"
        elif path.is_dir():
            found[name] = "/"
        else:
            found[name] = path.read_text() if path.is_file() else "node"
    return found


@pytest.fixture
def target(tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "rootfs"


def image(tmp_path: pathlib.Path, *layers: bytes) -> pathlib.Path:
    layout = Layout(tmp_path / "image")
    return layout.add(layout.manifest(*layers)).write()


async def test_layers(anyio_backend: str, tmp_path: pathlib.Path, target: pathlib.Path) -> None:
    lower = tarball(
        entry("./"), entry("./etc"), entry("./etc/old", b"old"), entry("./etc/kept", b"kept"), entry("usr/lib/a", b"a"),
        link("lib", "usr/lib"), link("var/run", "/run"), entry("run"), entry("opaque/x/deep", b"x"), entry("gone/b", b"b"),
        entry("file", b"a file"), entry("folder/in", b"in"), link("link", "file"),
    )  # fmt: skip
    upper = tarball(
        entry("etc/.wh.old", b""), entry("lib/b", b"b"), entry("var/run/pid", b"1"), entry("opaque/new", b"new"),
        entry("opaque/.wh..wh..opq", b""), entry(".wh.gone", b""), entry("file"), entry("folder", b"now a file"),
        entry("link", b"no link any more"), hard("etc/hard", "etc/kept"), entry("nowhere/.wh.x", b""),
        entry(".wh..wh.plnk", b""),
    )  # fmt: skip
    done = await nsorch.unpack(image(tmp_path, lower, upper), target)
    assert (done.layers, done.directory, done.notes) == (2, str(target), ())
    assert listed(target) == {
        "etc": "/", "etc/kept": "kept", "etc/hard": "kept", "usr": "/", "usr/lib": "/", "usr/lib/a": "a",
        "usr/lib/b": "b", "lib": "-> usr/lib", "var": "/", "var/run": "-> /run", "run": "/", "run/pid": "1",
        "opaque": "/", "opaque/new": "new", "file": "/", "folder": "now a file", "link": "no link any more",
    }  # fmt: skip
    assert (target / "etc" / "hard").stat().st_ino == (target / "etc" / "kept").stat().st_ino
    assert os.listdir(target.parent) == ["rootfs"]


async def test_a_whiteout_spares_its_own_layer(
    anyio_backend: str, tmp_path: pathlib.Path, target: pathlib.Path
) -> None:
    lower = tarball(entry("d/low", b"low"), entry("d/both", b"low"), entry("d/s/low", b"low"), entry("e/low", b"low"))
    upper = tarball(
        entry("d/both", b"high"), entry("d/s/high", b"high"), entry("d/.wh..wh..opq", b""),
        entry("e", mode=0o700), entry("e/high", b"high"), entry(".wh.e", b""),
    )  # fmt: skip
    await nsorch.unpack(image(tmp_path, lower, upper), target)
    assert listed(target) == {
        "d": "/", "d/both": "high", "d/s": "/", "d/s/high": "high", "e": "/", "e/high": "high",
    }  # fmt: skip
    assert stat.S_IMODE((target / "e").stat().st_mode) == 0o700


async def test_what_aufs_leaves_in_layers(anyio_backend: str, tmp_path: pathlib.Path, target: pathlib.Path) -> None:
    plnk = ".wh..wh.plnk"
    lower = tarball(
        entry(".wh..wh.aufs", b""), entry(plnk, mode=0o700), entry(f"{plnk}/1.2", b"x"), entry(f"{plnk}/d", mode=0o700),
        hard("one", f"{plnk}/1.2"), hard("two", f"{plnk}/1.2"), entry(".wh..wh.orph/o", b"o"),
    )  # fmt: skip
    await nsorch.unpack(image(tmp_path, lower, tarball(entry("three", b"y"), entry(f"{plnk}/3", b"z"))), target)
    assert listed(target) == {"one": "x", "two": "x", "three": "y"}
    assert (target / "one").stat().st_nlink == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts something")
async def test_a_mount_point_is_told_at_once(anyio_backend: str, tmp_path: pathlib.Path, target: pathlib.Path) -> None:
    """Also one of the same file system: it can't be replaced at the end."""
    source = tmp_path / "rootfs.tar"
    source.write_bytes(tarball(entry("f", b"x" * (1 << 20))))
    target.mkdir()
    async with nsorch.Supervisor() as sup:
        worker = await sup.start("w", mounts=[nsorch.bind(target, target)])
        program = "import anyio, nsorch, sys; anyio.run(nsorch.unpack, *sys.argv[1:])"
        done = await worker.run([sys.executable, "-c", program, str(source), str(target)], check=False)
        assert "OSError: [Errno 16] It is a mount point" in done.stderr.decode()
    assert list(target.parent.iterdir()) == [target]
    await nsorch.unpack(source, target)


async def test_no_place_for_it_is_told_by_its_name(anyio_backend: str, tmp_path: pathlib.Path) -> None:
    source = tmp_path / "rootfs.tar"
    source.write_bytes(tarball(entry("f", b"x")))
    with pytest.raises(FileNotFoundError, match=r"/missing'$"):
        await nsorch.unpack(source, tmp_path / "missing" / "rootfs")
    for name in ("x" * 255, "ü" * 127):
        await nsorch.unpack(source, tmp_path / name)


async def test_metadata(anyio_backend: str, tmp_path: pathlib.Path, target: pathlib.Path) -> None:
    pax = {"SCHILY.xattr.user.color": "blue", "SCHILY.xattr.trusted.overlay.opaque": "y", "mtime": "1700000000.25"}
    source = tmp_path / "rootfs.tar"
    source.write_bytes(
        tarball(
            entry("shut", mode=0o555, mtime=5), entry("shut/in", b"in", mode=0o400), entry("shut/sub/deep", b"d"),
            entry("su", b"su", mode=0o4755, uid=0, gid=0), entry("user", b"u", uid=1234, gid=2345, pax_headers=pax),
            entry("fifo", b"", type=tarfile.FIFOTYPE), link("l", "nowhere"), entry("tmp", mode=0o1777),
            entry("null", b"", type=tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666),
        )
    )  # fmt: skip
    done = await nsorch.unpack(source, target)
    shut = (target / "shut").stat()
    assert (stat.S_IMODE(shut.st_mode), shut.st_mtime) == (0o555, 5)
    assert stat.S_IMODE((target / "shut" / "in").stat().st_mode) == 0o400
    assert stat.S_IMODE((target / "tmp").stat().st_mode) == 0o1777
    assert stat.S_IMODE(target.stat().st_mode) == 0o755
    assert stat.S_ISFIFO((target / "fifo").stat().st_mode)
    user = (target / "user").stat()
    assert user.st_mtime == 1700000000.25
    assert os.listxattr(target / "user") in (["user.color"], [])  # a file system without them
    assert done.config is None
    if ROOT:
        assert (user.st_uid, user.st_gid) == (1234, 2345)
        assert (target / "su").stat().st_mode & stat.S_ISUID
        assert (target / "null").stat().st_rdev == os.makedev(1, 3)
        squashed = await nsorch.unpack(source, target.with_name("squashed"), squash=True)
        target, done = target.with_name("squashed"), squashed
    assert {path.lstat().st_uid for path in target.rglob("*")} == {os.geteuid()}
    assert not (target / "su").stat().st_mode & stat.S_ISUID
    assert not (target / "null").exists()
    notes = " ".join(done.notes)
    assert "1 device nodes left out: null" in notes
    assert "set-user-id" in notes
    for path in (target / "shut", target.with_name("rootfs") / "shut"):
        path.chmod(0o755)  # for pytest, to remove it


async def test_attributes_of_both_forms(anyio_backend: str, tmp_path: pathlib.Path, target: pathlib.Path) -> None:
    probe = tmp_path / "probe"
    probe.touch()
    try:
        os.setxattr(probe, "user.x", b"")
    except OSError:
        pytest.skip("this file system has no attributes")
    source = tmp_path / "rootfs.tar"
    bsdtar = {
        "LIBARCHIVE.xattr.user.binary": "AP8K",
        "LIBARCHIVE.xattr.user.bare": "YQ",  # libarchive leaves the padding out
        "LIBARCHIVE.xattr.user.a%3Db": "YWI=",
        "LIBARCHIVE.xattr.user.both": "Ym90aA",
        "SCHILY.xattr.user.both": "both",
        "LIBARCHIVE.xattr.trusted.overlay.opaque": "eQ",
        "LIBARCHIVE.creationtime": "1700000000",
    }
    source.write_bytes(tarball(entry("file", b"", pax_headers=bsdtar), entry("folder", pax_headers=bsdtar)))
    await nsorch.unpack(source, target)
    for name in ("file", "folder"):
        found = {key: os.getxattr(target / name, key) for key in os.listxattr(target / name)}
        assert found == {"user.binary": b"\0\xff\n", "user.bare": b"a", "user.a=b": b"ab", "user.both": b"both"}
    foreign = {"LIBARCHIVE.xattr.security.capability": "AQAAAg"}
    source.write_bytes(tarball(entry("file", b"", pax_headers=foreign)))
    done = await nsorch.unpack(source, target.with_name("squashed"), squash=True)
    assert done.notes == ("1 attributes security.capability left out: file",)


@pytest.mark.parametrize("kind", [b"", None])
@pytest.mark.parametrize(
    ("header", "problem"), [({"x": "%%%"}, r"entry 'it': attribute 'user\.x' is not Base64"), ({"x%00": ""}, "null")]
)
async def test_attributes_that_are_damaged(
    header: dict[str, str],
    problem: str,
    kind: bytes | None,
    anyio_backend: str,
    tmp_path: pathlib.Path,
    target: pathlib.Path,
) -> None:
    pax = {f"LIBARCHIVE.xattr.user.{key}": value for key, value in header.items()}
    source = tmp_path / "rootfs.tar"
    source.write_bytes(tarball(entry("it", kind, pax_headers=pax)))
    with pytest.raises(nsorch.ImageError, match=problem):
        await nsorch.unpack(source, target)


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz", ".bz2", ".zst", ".pzst"])
@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
async def test_tarballs(
    suffix: str, form: int, anyio_backend: str, tmp_path: pathlib.Path, target: pathlib.Path
) -> None:
    data = tarball(entry("etc/hostname", b"x" * 100_000), link("a", "etc/hostname"), form=form)
    if suffix.endswith("zst"):
        skippable = b"\x50\x2a\x4d\x18\4\0\0\0size" if suffix == ".pzst" else b""
        data = skippable + pytest.importorskip("zstandard").compress(data)
    else:
        data = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress}[suffix](data)
    (tmp_path / "rootfs").write_bytes(data)
    done = await nsorch.unpack(tmp_path / "rootfs", target)
    assert (done.size, done.layers, done.entries) == (100_000, 1, 2)
    assert (target / "a").stat().st_size == 100_000


async def test_what_gnu_tar_writes(anyio_backend: str, tmp_path: pathlib.Path, target: pathlib.Path) -> None:
    """A tree with long names, hard links, holes and odd bytes comes back as it was."""
    source = tmp_path / "source"
    deep = source / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    (deep / ("f" * 200)).write_bytes(b"long")
    os.link(deep / ("f" * 200), source / "second")
    (source / os.fsdecode(b"odd \xff\n")).write_bytes(b"odd")
    with open(source / "holes", "wb") as file:
        file.seek(5_000_000)
        file.write(b"end")
    (source / "empty").touch()
    dumped = ["-S", "--format=oldgnu", f"--listed-incremental={tmp_path / 'state'}"]
    for flags in (["-S", "--format=gnu", "--label=/a label"], ["-S", "--format=posix"], dumped):
        subprocess.run(["tar", *flags, "-cf", tmp_path / "x.tar", "-C", source, "."], check=True)
        out = target.with_name(flags[1])
        await nsorch.unpack(tmp_path / "x.tar", out)
        assert listed_bytes(out) == listed_bytes(source)
        assert (out / "holes").stat().st_blocks * 512 < 1_000_000
        assert (out / "second").stat().st_nlink == 2


def listed_bytes(top: pathlib.Path) -> dict[bytes, bytes]:
    return {os.fsencode(p.relative_to(top)): p.read_bytes() for p in top.rglob("*") if p.is_file()}


async def test_images_of_several(anyio_backend: str, tmp_path: pathlib.Path, target: pathlib.Path) -> None:
    layout = Layout(tmp_path / "image")
    nested = Layout(tmp_path / "nested")
    nested.path = layout.path
    for number, platform in enumerate(
        ("linux/amd64", "linux/arm64/v8", "linux/arm/v6", "linux/arm/v7", "unknown/unknown")
    ):
        config = {"Entrypoint": ["/bin/sh"], "Cmd": ["-c", "true"], "Env": ["PATH=/bin", "E="], "WorkingDir": "/w"}
        made = layout.manifest(tarball(entry(f"for-{number}", b"")), config=config)
        nested.add(made, platform=platform)
    descriptor = layout.blob(nested.index(), "application/vnd.oci.image.index.v1+json")
    layout.add(descriptor, tag="all").add(layout.manifest(tarball(entry("other", b""))), tag="one").write()
    for wanted, name in (("arm64", "for-1"), ("linux/arm/v7", "for-3"), ("linux/arm/v6", "for-2"), ("amd64", "for-0")):
        out = target.with_name(wanted.replace("/", "-"))
        done = await nsorch.unpack(layout.path, out, tag="all", platform=wanted)
        assert os.listdir(out) == [name]
    assert done.config is not None
    assert done.config.command == ("/bin/sh", "-c", "true")
    assert (dict(done.config.env), done.config.cwd) == ({"PATH": "/bin", "E": ""}, "/w")
    await nsorch.unpack(layout.path, target, tag="one")
    assert os.listdir(target) == ["other"]
    for tag, platform, text in (
        (None, None, "choose a tag: all, one"),
        ("none", None, 'no tag "none"'),
        ("all", "linux/s390x", "no image for linux/s390x"),
        ("all", "a/b/c/d", "is not such as"),
    ):
        with pytest.raises(nsorch.ImageError, match=text):
            await nsorch.unpack(layout.path, target.with_name("no"), tag=tag, platform=platform)


async def test_what_skopeo_leaves_by_dir(anyio_backend: str, tmp_path: pathlib.Path, target: pathlib.Path) -> None:
    layout = Layout(tmp_path / "image")
    descriptor = layout.manifest(tarball(entry("a", b"a")))
    flat = tmp_path / "flat"
    (layout.path / "blobs" / "sha256").rename(flat)
    (flat / descriptor["digest"].partition(":")[2]).rename(flat / "manifest.json")
    (flat / "version").write_text("Directory Transport Version: 1.1\n")
    done = await nsorch.unpack(flat, target)
    assert (os.listdir(target), done.digest) == (["a"], descriptor["digest"])


async def test_what_skopeo_leaves_of_several_by_dir(
    anyio_backend: str, tmp_path: pathlib.Path, target: pathlib.Path
) -> None:
    """``skopeo copy --all``: the index is ``manifest.json``, and each manifest has a name of its own."""
    layout = Layout(tmp_path / "image")
    for number, platform in enumerate(("linux/amd64", "linux/arm64/v8")):
        layout.add(layout.manifest(tarball(entry(f"for-{number}", b""))), platform=platform)
    flat = tmp_path / "flat"
    (layout.path / "blobs" / "sha256").rename(flat)
    (flat / "manifest.json").write_bytes(layout.index())
    for descriptor in layout.manifests:
        name = descriptor["digest"].partition(":")[2]
        (flat / name).rename(flat / f"{name}.manifest.json")
    done = await nsorch.unpack(flat, target, platform="arm64")
    assert (os.listdir(target), done.digest) == (["for-1"], layout.manifests[1]["digest"])
    with pytest.raises(nsorch.ImageError, match="manifest.json has no image for linux/s390x"):
        await nsorch.unpack(flat, target.with_name("no"), platform="s390x")


async def test_sha512(anyio_backend: str, tmp_path: pathlib.Path, target: pathlib.Path) -> None:
    layer = tarball(entry("a", b"a"))
    diff_id = f"sha512:{hashlib.sha512(layer).hexdigest()}"
    layout = Layout(tmp_path / "image")
    layout.add(layout.manifest(layer, rootfs={"type": "layers", "diff_ids": [diff_id]})).write()
    await nsorch.unpack(layout.path, target)
    assert listed(target) == {"a": "a"}


async def test_a_device_node_of_two_names(anyio_backend: str, tmp_path: pathlib.Path, target: pathlib.Path) -> None:
    """Where one is left out, so are hard links to it."""
    node = entry("dev/null", b"", type=tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666)
    lower = tarball(entry("also", b"file"), node, hard("dev/second", "dev/null"), hard("also", "dev/null"))
    source = image(
        tmp_path, lower, tarball(hard("third", "dev/second"), entry("dev/null", b"x"), hard("f", "dev/null"))
    )
    done = await nsorch.unpack(source, target, squash=True)
    assert listed(target) == {"dev": "/", "dev/null": "x", "f": "x"}
    assert done.notes == ("4 device nodes left out: dev/null, dev/second, also, …",)


@pytest.mark.parametrize("short", ["end mark", "padding"])
async def test_what_umoci_insert_leaves(
    anyio_backend: str, tmp_path: pathlib.Path, target: pathlib.Path, short: str
) -> None:
    """Its layers have no end mark, and no padding of the last file: what the digest says is all that there is."""
    whole = tarball(entry("a", b"1" * 600), entry("b", b"2" * 700))
    layout = Layout(tmp_path / "image")
    layout.add(layout.manifest(whole[: 512 * 6 if short == "end mark" else 512 * 4 + 700], tarball(entry("c", b"3"))))
    assert (await nsorch.unpack(layout.write(), target)).entries == 3
    assert [len((target / name).read_bytes()) for name in "abc"] == [600, 700, 1]


async def test_target(anyio_backend: str, tmp_path: pathlib.Path, target: pathlib.Path) -> None:
    source = tmp_path / "x.tar"
    source.write_bytes(tarball(entry("a", b"a")))
    target.mkdir()
    await nsorch.unpack(source, target)  # an empty one
    with pytest.raises(OSError, match="not empty"):
        await nsorch.unpack(source, target)
    with pytest.raises(FileNotFoundError):
        await nsorch.unpack(source, tmp_path / "missing" / "x")
    (tmp_path / "link").symlink_to(target)
    (tmp_path / "x.tar").rename(target.parent / "x.tar")  # above where the link leads, not where it is
    await nsorch.unpack(f"{tmp_path}/link/../x.tar", f"{tmp_path}/link/../other")
    assert listed(target) == listed(target.parent / "other") == {"a": "a"}


async def test_cancelled(anyio_backend: str, tmp_path: pathlib.Path, target: pathlib.Path) -> None:
    source = tmp_path / "fifo.tar.gz"
    # 20,000 files: by far more work than what is done until the first is seen.
    source.write_bytes(gzip.compress(tarball(*(entry(f"d/{n}", b"x" * 4000) for n in range(20_000))), 1))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(nsorch.unpack, source, target)
        while not [name for name in os.listdir(target.parent) if name.endswith(".unpacking")]:
            await anyio.sleep(0.001)
        tasks.cancel_scope.cancel()
    assert os.listdir(target.parent) == []


def saved(path: pathlib.Path, tags: dict[str, bytes]) -> pathlib.Path:
    """An archive as ``docker save`` made it: of an image for each of *tags*, whose layers are one that all have, by a
    link, and its own."""
    shared = tarball(entry("a", b"a"), entry("gone", b""))
    listed, files = [], [entry("shared"), entry("shared/layer.tar", shared), entry("repositories", b"{}")]
    for number, (tag, layer) in enumerate(tags.items()):
        config = {
            "architecture": "arm64",
            "os": "linux",
            "config": {"Cmd": ["sh"]},
            "rootfs": {"diff_ids": [digest(shared), digest(layer)]},
        }
        data = json.dumps(config).encode()
        name = f"{digest(data).partition(':')[2]}.json"
        layers = [f"{number}-0/layer.tar", f"{number}-1/layer.tar"]
        listed.append({"Config": name, "RepoTags": [tag], "Layers": layers})
        files += [entry(f"{number}-0"), link(layers[0], "../shared/layer.tar"), entry(f"{number}-1")]
        files += [entry(layers[1], layer), entry(name, data)]
    path.write_bytes(tarball(*files, entry("manifest.json", json.dumps(listed).encode())))
    return path


@pytest.mark.parametrize("extracted", [False, True])
async def test_what_docker_save_wrote(
    anyio_backend: str, extracted: bool, tmp_path: pathlib.Path, target: pathlib.Path
) -> None:
    layers = {"box:1": tarball(entry("b", b"1"), entry(".wh.gone", b"")), "host:80/box:2": tarball(entry("b", b"2"))}
    source = saved(tmp_path / "box.tar", layers)
    if extracted:
        source = tmp_path / "box"
        source.mkdir()
        subprocess.run(["tar", "-xf", tmp_path / "box.tar", "-C", source], check=True)
    done = await nsorch.unpack(source, target, tag="1")
    assert listed(target) == {"a": "a", "b": "1"}
    assert (done.layers, done.entries, done.digest) == (2, 4, "")
    assert done.config is not None
    assert done.config.command == ("sh",)
    await nsorch.unpack(source, target.with_name("other"), tag="host:80/box:2", platform="linux/arm64")
    assert listed(target.with_name("other")) == {"a": "a", "b": "2", "gone": ""}
    for tag, platform, text in (
        (None, None, "2 images; choose a tag: box:1, host:80/box:2"),
        ("3", None, 'no tag "3" in manifest.json, but box:1'),
        ("1", "linux/s390x", "is for linux/arm64, not for linux/s390x"),
    ):
        with pytest.raises(nsorch.ImageError, match=text):
            await nsorch.unpack(source, target.with_name("no"), tag=tag, platform=platform)
    assert sorted(os.listdir(target.parent)) == ["other", "rootfs"]


async def test_archives_of_layouts(anyio_backend: str, tmp_path: pathlib.Path, target: pathlib.Path) -> None:
    """``docker save`` since Docker 25, ``skopeo copy … oci-archive:``."""
    layout = Layout(tmp_path / "image")
    for name in ("one:latest", "two:latest"):
        layout.add(layout.manifest(tarball(entry(name[:3], b""))), tag="latest")
        layout.manifests[-1]["annotations"]["io.containerd.image.name"] = f"docker.io/library/{name}"
    source = layout.write()
    (source / "manifest.json").write_text("[]")
    with tarfile.open(tmp_path / "image.tar.gz", "w:gz") as archive:
        archive.add(source, arcname=".")
    done = await nsorch.unpack(tmp_path / "image.tar.gz", target, tag="two:latest")
    assert (os.listdir(target), done.digest) == (["two"], layout.manifests[1]["digest"])
    with pytest.raises(nsorch.ImageError, match="choose a tag: docker.io/library/one:latest, docker.io/library/two:la"):
        await nsorch.unpack(tmp_path / "image.tar.gz", target.with_name("no"))
    assert os.listdir(target.parent) == ["rootfs"]


def test_command_line(tmp_path: pathlib.Path, target: pathlib.Path) -> None:
    source = image(tmp_path, tarball(entry("a", b"abc")))
    command = [sys.executable, "-m", "nsorch", "unpack", str(source)]
    done = subprocess.run([*command, str(target), "--json"], capture_output=True, text=True, check=True)
    document = json.loads(done.stdout)
    assert (document["layers"], document["size"], document["directory"]) == (1, 3, str(target))
    again = subprocess.run([*command, str(target)], capture_output=True, text=True, check=False)
    assert again.returncode == 125
    assert again.stderr.startswith("nsorch: ")
    assert "not empty" in again.stderr


def endless(folder: pathlib.Path) -> pathlib.Path:
    source, header = folder / "x.tar", tarfile.TarInfo("file")
    header.size = 1 << 35
    source.write_bytes(header.tobuf(tarfile.GNU_FORMAT))
    os.truncate(source, header.size)
    return source


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_command_line_interrupted(tmp_path: pathlib.Path, target: pathlib.Path, number: signal.Signals) -> None:
    """By a signal, while it waits for more: nothing is left."""
    command = [sys.executable, "-m", "nsorch", "unpack", str(endless(tmp_path)), str(target)]
    with subprocess.Popen(
        ["env", "--default-signal", *command],  # whoever runs this may have had it ignored
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        while not list(target.parent.glob(".*.unpacking/file")):
            assert process.poll() is None
        process.send_signal(number)
        assert (process.wait(20), process.communicate()) == (128 + number, (b"", b""))
    assert not list(target.parent.glob(".*.unpacking"))
    assert not target.exists()


def test_command_line_without_its_terminal(tmp_path: pathlib.Path, target: pathlib.Path) -> None:
    """nohup has SIGHUP ignored, and it stays so."""
    command = [sys.executable, "-m", "nsorch", "unpack", str(endless(tmp_path)), str(target)]
    with subprocess.Popen(["nohup", *command], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not list(target.parent.glob(".*.unpacking/file")):
            assert process.poll() is None
        status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
        process.terminate()
        assert process.wait(20) == 128 + signal.SIGTERM
    ignored = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigIgn"))
    assert ignored >> (signal.SIGHUP - 1) & 1
