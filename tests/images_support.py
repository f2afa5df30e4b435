"""Makes archives and image layouts, also such as nobody should."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import pathlib
import tarfile
from typing import Any


def entry(name: str, data: bytes | None = None, **attributes: Any) -> tuple[tarfile.TarInfo, bytes]:
    """A file with *data*, or a directory; or what ``type=`` says."""
    info = tarfile.TarInfo(name)
    info.name = name  # TarInfo() keeps it, also an absolute one
    info.type = tarfile.DIRTYPE if data is None else tarfile.REGTYPE
    info.mode = 0o755 if data is None else 0o644
    info.size = len(data or b"")
    for key, value in attributes.items():
        setattr(info, key, value)
    return info, data or b""


def link(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, type=tarfile.SYMTYPE, linkname=target, mode=0o777)


def hard(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, type=tarfile.LNKTYPE, linkname=target)


def tarball(*entries: tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for info, data in entries:
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class Layout:
    """An OCI image layout below *path*."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        (path / "blobs" / "sha256").mkdir(parents=True)
        (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        self.manifests: list[dict[str, Any]] = []

    def blob(self, data: bytes, kind: str = "application/json") -> dict[str, Any]:
        name = digest(data)
        (self.path / "blobs" / "sha256" / name.partition(":")[2]).write_bytes(data)
        return {"mediaType": kind, "digest": name, "size": len(data)}

    def manifest(self, *layers: bytes, compress: Any = gzip.compress, **config: Any) -> dict[str, Any]:
        """*layers* are archives; the descriptor."""
        described = [self.blob(compress(layer), "application/vnd.oci.image.layer.v1.tar+gzip") for layer in layers]
        diff_ids = [digest(layer) for layer in layers]
        about = {"os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}, **config}
        manifest = {"schemaVersion": 2, "config": self.blob(json.dumps(about).encode()), "layers": described}
        return self.blob(json.dumps(manifest).encode(), "application/vnd.oci.image.manifest.v1+json")

    def add(self, descriptor: dict[str, Any], *, tag: str | None = None, platform: str | None = None) -> Layout:
        descriptor = dict(descriptor)
        if tag is not None:
            descriptor["annotations"] = {"org.opencontainers.image.ref.name": tag}
        if platform is not None:
            descriptor["platform"] = dict(zip(("os", "architecture", "variant"), platform.split("/"), strict=False))
        self.manifests.append(descriptor)
        return self

    def index(self) -> bytes:
        return json.dumps({"schemaVersion": 2, "manifests": self.manifests}).encode()

    def write(self) -> pathlib.Path:
        (self.path / "index.json").write_bytes(self.index())
        return self.path
