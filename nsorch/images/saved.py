"""What ``docker save`` wrote before Docker 25, and what ``skopeo copy … docker-archive:`` writes, unpacked:
``manifest.json`` lists images, each with the paths of its configuration and of its layers.

See https://github.com/moby/docker-image-spec. What newer ones write is an OCI image layout as well.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from typing import TYPE_CHECKING, Any

from nsorch.errors import ImageError
from nsorch.images.layout import Image, Layer, Layout, check_platform, open_inside, parse, read_config

if TYPE_CHECKING:
    import io
    from collections.abc import Iterator

    from nsorch.images.platforms import Platform

_LIST = "manifest.json"
_DIGEST = re.compile(r"(?:.*/)?([0-9a-f]{64})(?:\.json)?")


class Saved:
    """:param path: of the directory."""

    def __init__(self, path: str) -> None:
        self._path = path

    def is_one(self) -> bool:
        """Whether it has such a list at all."""
        try:
            return bool(self._list())
        except ImageError:
            return False

    def _list(self) -> list[dict[str, Any]]:
        with self._open(_LIST) as file:
            listed: list[Any] = parse(file, _LIST, list)
        if not all(isinstance(each, dict) and "Layers" in each for each in listed):
            raise ImageError(f"{_LIST} is no list of images")
        return listed

    def _open(self, name: str) -> io.BufferedReader:
        """Links are followed: of layers that are the same, older ones have one."""
        return open_inside(self._path, os.path.join(self._path, name), name)

    @contextlib.contextmanager
    def layer(self, layer: Layer) -> Iterator[io.BufferedReader]:
        with self._open(layer.path) as file:
            yield file

    def image(self, tag: str | None, platform: Platform, *, asked: bool) -> Image:
        """As :meth:`Layout.image`."""
        listed = self._list()
        tags = [_strings(each, "RepoTags") if each.get("RepoTags") else [] for each in listed]
        fitting = [
            each
            for each, names in zip(listed, tags, strict=True)
            if tag is None or any(tag in (name, name.rpartition(":")[2]) for name in names)
        ]
        known = ", ".join(name for names in tags for name in names) or "none"
        if not fitting:
            raise ImageError(f'there is no tag "{tag}" in {_LIST}, but {known}')
        if len(fitting) > 1:
            raise ImageError(f"{_LIST} has {len(fitting)} images; choose a tag: {known}")
        return self._image(fitting[0], platform, asked=asked)

    def _image(self, described: dict[str, Any], platform: Platform, *, asked: bool) -> Image:
        name = described.get("Config")
        if not isinstance(name, str):
            raise ImageError(f"{_LIST} has no Config")
        with self._open(name) as file:
            data = file.read()
            file.seek(0)
            config = parse(file, "configuration")
        if (match := _DIGEST.fullmatch(name)) and hashlib.sha256(data).hexdigest() != match[1]:
            raise ImageError(f"{name} is damaged: its contents have another digest")
        check_platform(config, platform, asked=asked)
        paths = _strings(described, "Layers")
        rootfs = config.get("rootfs")
        diff_ids = _strings(rootfs, "diff_ids") if isinstance(rootfs, dict) else []
        if len(diff_ids) != len(paths):
            raise ImageError(f"{_LIST} has {len(paths)} layers, and the configuration {len(diff_ids)}")
        layers = tuple(Layer(path=path, diff_id=diff_id) for path, diff_id in zip(paths, diff_ids, strict=True))
        return Image(layers=layers, config=read_config(config.get("config") or {}))


def _strings(table: dict[str, Any], key: str) -> list[str]:
    found = table.get(key)
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise ImageError(f"{key} is no list of strings")
    return found


def find(path: str) -> Layout | Saved | None:
    """The image in a directory."""
    if not os.path.isfile(f"{path}/index.json") and Saved(path).is_one():
        return Saved(path)
    return Layout(path) if Layout.found(path) else None


def find_packed(path: str) -> Layout | Saved | None:
    """The image in a directory that may be a root file system instead."""
    if all(os.path.isfile(f"{path}/{name}") for name in ("oci-layout", "index.json")):
        return Layout(path, packed=True)
    return Saved(path) if Saved(path).is_one() else None
