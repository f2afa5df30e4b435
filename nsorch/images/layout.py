"""Image directories: OCI layouts, and what ``skopeo copy … dir:`` leaves. Everything is checked against its digest.

See https://github.com/opencontainers/image-spec: ``index.json`` names manifests, or indexes of them; a manifest names a
configuration and layers, each by the digest that is its file's name below ``blobs``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import stat
from typing import IO, TYPE_CHECKING, Any

from attrs import field, frozen

from nsorch.errors import ImageError
from nsorch.images.platforms import Platform
from nsorch.images.values import ImageConfig
from nsorch.values import Value

if TYPE_CHECKING:
    import io
    from collections.abc import Iterator, Mapping

_TAG = "org.opencontainers.image.ref.name"
_NAME = "io.containerd.image.name"  # such as docker.io/library/alpine:latest, whose tag is latest alone
_MOST_JSON = 16 << 20
_DEEPEST = 8
_DIGEST = re.compile(r"(sha256):([0-9a-f]{64})|(sha512):([0-9a-f]{128})")
_INDEXES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)


@frozen(kw_only=True, eq=False, repr=False)
class Layer(Value):
    """:ivar path: where it lies, if it isn't found by its digest
    :ivar diff_id: the digest without compression, or ``""``
    """

    digest: str = ""
    size: int | None = None
    path: str = ""
    diff_id: str = ""


@frozen(kw_only=True, eq=False, repr=False)
class Image(Value):
    """:ivar digest: of its manifest, or ``""``"""

    digest: str = ""
    layers: tuple[Layer, ...]
    config: ImageConfig = field(factory=ImageConfig)


class Layout:
    """
    :param path: of the directory
    :param packed: it comes from an archive, whose symbolic links lead nowhere outside
    """

    def __init__(self, path: str, *, packed: bool = False) -> None:
        self._path = path
        self._packed = packed
        self._flat = not os.path.exists(f"{path}/index.json")  # what ``dir:`` leaves has its blobs beside the manifest

    @classmethod
    def found(cls, path: str) -> bool:
        return any(os.path.isfile(f"{path}/{name}") for name in ("index.json", "manifest.json"))

    # -- blobs

    @contextlib.contextmanager
    def blob(self, digest: str, size: int | None = None) -> Iterator[io.BufferedReader]:
        """Open a blob that is what its digest says.

        :raises ImageError: it is missing, or isn't
        """
        algorithm, name = split_digest(digest)
        path = f"{self._path}/{name}" if self._flat else f"{self._path}/blobs/{algorithm}/{name}"
        if self._flat and not os.path.lexists(path):
            path += ".manifest.json"  # one of several, see ``skopeo copy --all``
        with self._open(path, digest) as file:
            if size is not None and (actual := os.fstat(file.fileno()).st_size) != size:
                raise ImageError(f"blob {digest} has {actual} bytes instead of {size}")
            if hashlib.file_digest(file, algorithm).hexdigest() != name:
                raise ImageError(f"blob {digest} is damaged: its contents have another digest")
            file.seek(0)
            yield file

    def _open(self, path: str, what: str) -> io.BufferedReader:
        return open_inside(self._path, path, what) if self._packed else open_file(path, what)

    @contextlib.contextmanager
    def layer(self, layer: Layer) -> Iterator[io.BufferedReader]:
        """Its file, which isn't damaged.

        :raises ImageError: it is missing, or it is
        """
        with self.blob(layer.digest, layer.size) as file:
            yield file

    def _json(self, descriptor: Mapping[str, Any], what: str) -> Any:
        with self.blob(_text(descriptor, "digest", what), _size(descriptor, what)) as file:
            return parse(file, what)

    # -- what they say

    def image(self, tag: str | None, platform: Platform, *, asked: bool) -> Image:
        """The image of *tag*, for *platform*.

        :param asked: somebody wants this platform, and no other
        :raises ImageError: there is none, or more than one
        """
        if self._flat:
            if tag is not None:
                raise ImageError(f'there is no tag "{tag}": the directory holds one image without a name')
            with self._open(f"{self._path}/manifest.json", "manifest.json") as file:
                data = file.read(_MOST_JSON)
                file.seek(0)
                manifest = parse(file, "manifest.json")
            digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
            several = _list(manifest, "manifests", "manifest.json") if "manifests" in manifest else None
        else:
            with self._open(f"{self._path}/index.json", "index.json") as file:
                index = parse(file, "index.json")
            several = _named(_list(index, "manifests", "index.json"), tag)
        if several is not None:
            where = "manifest.json" if self._flat else "index.json"
            descriptor = self._choose(several, platform, where, 0, asked=asked)
            digest, manifest = descriptor["digest"], self._json(descriptor, "manifest")
        if "layers" not in manifest:
            kind = "an index" if "manifests" in manifest else "no image manifest"
            raise ImageError(f"the manifest {digest} is {kind}")
        return self._image(digest, manifest, platform, asked=asked)

    def _choose(self, found: list[Any], platform: Platform, where: str, depth: int, *, asked: bool) -> Any:
        """The descriptor of the one manifest that fits."""
        if depth > _DEEPEST:
            raise ImageError("indexes are nested too deeply")
        fitting = platform.best(found)
        if not fitting:
            there = ", ".join(sorted({str(Platform.of(each)) for each in found})) or "nothing"
            raise ImageError(f"{where} has no image for {platform}, but {there}")
        if len({each.get("digest") for each in fitting}) > 1:
            tags = ", ".join(sorted((_names(each) or ["None"])[-1] for each in fitting))
            raise ImageError(f"{where} has {len(fitting)} images for {platform}; choose a tag: {tags}")
        chosen = fitting[0]
        if chosen.get("mediaType") in _INDEXES or chosen.get("mediaType") is None:
            nested = self._json(chosen, "index")
            if "manifests" in nested:
                return self._choose(
                    _list(nested, "manifests", chosen["digest"]), platform, chosen["digest"], depth + 1, asked=asked
                )
        return chosen

    def _image(self, digest: str, manifest: Mapping[str, Any], platform: Platform, *, asked: bool) -> Image:
        config: Any = {}
        if isinstance(manifest.get("config"), dict):
            config = self._json(manifest["config"], "configuration")
        check_platform(config, platform, asked=asked)
        described = _list(manifest, "layers", digest)
        diff_ids = config.get("rootfs", {}).get("diff_ids", []) if isinstance(config.get("rootfs"), dict) else []
        if diff_ids and len(diff_ids) != len(described):
            raise ImageError(f"the manifest has {len(described)} layers, and its configuration {len(diff_ids)}")
        layers = []
        for number, each in enumerate(described):
            what = f"layers[{number}]"
            if "+encrypted" in str(each.get("mediaType")):
                raise ImageError(f"{what} is encrypted")
            layers.append(
                Layer(
                    digest=_text(each, "digest", what),
                    size=_size(each, what),
                    diff_id=str(diff_ids[number]) if diff_ids else "",
                )
            )
        return Image(digest=digest, layers=tuple(layers), config=read_config(config.get("config") or {}))


def check_platform(config: Mapping[str, Any], platform: Platform, *, asked: bool) -> None:
    """
    :raises ImageError: somebody wants *platform*, and the image is for another
    """
    built_for = Platform.of({"platform": config})
    if asked and config.get("architecture") and not platform.fits(built_for):
        raise ImageError(f"the image is for {built_for}, not for {platform}")


def split_digest(digest: str) -> tuple[str, str]:
    """Its algorithm, and the number in hexadecimal.

    :raises ImageError: it has another algorithm, or is none
    """
    match = _DIGEST.fullmatch(digest)
    if match is None:
        raise ImageError(f"{digest[:100]!r} is no sha256 or sha512 digest")
    return match[1] or match[3], match[2] or match[4]


def _named(found: list[Any], tag: str | None) -> list[Any]:
    if tag is None:
        return found
    chosen = [each for each in found if any(name == tag or name.endswith(f"/{tag}") for name in _names(each))]
    if not chosen:
        known = ", ".join(sorted({name for each in found for name in _names(each)[-1:]})) or "none"
        raise ImageError(f'there is no tag "{tag}" in index.json, but {known}')
    return chosen


def _names(descriptor: Mapping[str, Any]) -> list[str]:
    """Its tag, and where there is one its whole name."""
    annotations = descriptor.get("annotations")
    if not isinstance(annotations, dict):
        return []
    return [name for key in (_TAG, _NAME) if isinstance(name := annotations.get(key), str)]


def open_file(path: str, what: str) -> io.BufferedReader:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a fifo would wait for a writer
    except OSError as exc:
        raise ImageError(f"{what} can't be read", detail=exc.strerror or "") from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise ImageError(f"{what} is no file")
    return open(fd, "rb")


def open_inside(folder: str, path: str, what: str) -> io.BufferedReader:
    """As :func:`open_file`, through symbolic links that stay below *folder*.

    :raises ImageError: one leads outside
    """
    found, top = os.path.realpath(path), os.path.realpath(folder)
    if os.path.commonpath([found, top]) != top:
        raise ImageError(f"{what!r} leads outside")
    return open_file(found, what)


def parse(file: IO[bytes], what: str, kind: type = dict) -> Any:
    """
    :raises ImageError: it is too large, or no JSON of this *kind*
    """
    data = file.read(_MOST_JSON + 1)
    if len(data) > _MOST_JSON:
        raise ImageError(f"{what} is larger than {_MOST_JSON} bytes")
    try:
        parsed = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise ImageError(f"{what} is no JSON", detail=str(exc)) from None
    if not isinstance(parsed, kind):
        raise ImageError(f"{what} is no JSON {'object' if kind is dict else kind.__name__}")
    return parsed


def _list(value: Mapping[str, Any], key: str, what: str) -> list[Any]:
    found = value.get(key)
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise ImageError(f"{what} has no list of {key}")
    return found


def _text(value: Mapping[str, Any], key: str, what: str) -> str:
    if not isinstance(value.get(key), str):
        raise ImageError(f"{what} has no {key}")
    return str(value[key])


def _size(value: Mapping[str, Any], what: str) -> int:
    size = value.get("size")
    if isinstance(size, bool) or not isinstance(size, int) or size < 0:
        raise ImageError(f"{what} has no size")
    return size


def read_config(value: Any) -> ImageConfig:
    if not isinstance(value, dict):
        raise ImageError("the configuration is no JSON object")
    lists = {}
    for key in ("Entrypoint", "Cmd", "Env"):
        found = value.get(key) or []
        if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
            raise ImageError(f"{key} of the configuration is no list of strings")
        lists[key] = found
    for key in ("WorkingDir", "User"):
        if not isinstance(value.get(key) or "", str):
            raise ImageError(f"{key} of the configuration is no string")
    return ImageConfig(
        entrypoint=tuple(lists["Entrypoint"]),
        cmd=tuple(lists["Cmd"]),
        env={name: text for name, _, text in (each.partition("=") for each in lists["Env"])},
        cwd=value.get("WorkingDir") or "",
        user=value.get("User") or "",
    )
