"""Files in folders and archives of every kind, to be listed and read."""

import io
import tarfile
import zipfile

import pytest

from crackvae.dataset import manifest
from crackvae.dataset.reader import Reader
from crackvae.dataset.sources import list_source
from crackvae.errors import ImageError, InputError


def bytes_of(path):
    return f"bytes of {path}".encode("utf-8", "surrogateescape")


def make_folder(place, paths):
    for path in paths:
        file = place / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(bytes_of(path))
    return place


def make_zip(place, paths):
    with zipfile.ZipFile(place, "w") as archive:
        for path in paths:
            archive.writestr(path, bytes_of(path))
    return place


def make_tar(place, paths):
    with tarfile.open(place, "w:gz" if place.name.endswith("gz") else "w") as archive:
        for path in paths:
            member = tarfile.TarInfo(path)
            member.size = len(bytes_of(path))
            archive.addfile(member, io.BytesIO(bytes_of(path)))
    return place


MAKERS = {
    "folder": make_folder,
    "a.zip": make_zip,
    "a.tar": make_tar,
    "a.tar.gz": make_tar,
    "A.TGZ": make_tar,
}


def listed(source):
    return {file.path: file for file in list_source(str(source))}


def read(uri, max_bytes=1000):
    with Reader() as reader:
        return reader.read(uri, max_bytes)


def failure(uri, max_bytes=1000):
    with pytest.raises(ImageError) as caught:
        read(uri, max_bytes)
    assert "\n" not in caught.value.message
    return caught.value.status, caught.value.message


def refusal(source):
    with pytest.raises(InputError) as caught:
        list(list_source(str(source)))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def column(table, name):
    return table[name].to_pylist()


def ids(*locations, **options):
    return column(manifest.build(locations, **options)[0], "image_id")


def not_indexed(*locations, **options):
    with pytest.raises(InputError) as caught:
        manifest.build([str(location) for location in locations], **options)
    message = str(caught.value)
    assert "\n" not in message
    return message
