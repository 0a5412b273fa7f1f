"""A model's directory while the model is made: it belongs to one training or calibration, which goes on there."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from typing import Any

import pyarrow as pa

from crackvae import config as configuration
from crackvae import storage
from crackvae.dataset import manifest
from crackvae.errors import RefusedError
from crackvae.model import artifact, card
from crackvae.model.artifact import Artifact
from crackvae.run import directory, lock
from crackvae.schema import Label, Split
from crackvae.terminal import log

WORK = ".training"  # below the model's directory; gone when the model is complete
FACTS = "training.json"


def fingerprint(*tables: pa.Table) -> str:
    """SHA-256 of what the images of each table contain; names and places count only where no content hash is known."""
    digest = sha256()
    for table in tables:
        rows = zip(*(table[name].to_pylist() for name in ("content_hash", "uri", "size", "mtime")), strict=True)
        known = sorted(content or f"{uri} {size} {mtime}" for content, uri, size, mtime in rows)
        digest.update("".join(known).encode())
        digest.update(b"\n")
    return digest.hexdigest()


def finished(out: str, facts: Mapping[str, Any]) -> Artifact:
    """The model that lies there already.

    Raises:
        RefusedError: It is another one.
    """
    model = artifact.load(out)
    _refuse_other(out, model.provenance, facts)
    log.info("%s is already complete", out)
    storage.remove(storage.join(out, WORK))
    return model


def data(table: pa.Table) -> str:
    """The fingerprint of what a manifest trains and calibrates a model with."""
    val = manifest.rows(table, split=Split.VAL, label=Label.NORMAL)
    return fingerprint(manifest.rows(table, split=Split.TRAIN, label=Label.NORMAL), manifest.one_per_group(val))


@contextmanager
def claim(out: str, facts: Mapping[str, Any]) -> Iterator[None]:
    """Takes an empty directory, or goes on in one that these facts have taken; one process at a time.

    Raises:
        RefusedError: It holds something else, or another process is at it.
    """
    path = storage.join(out, WORK, FACTS)
    if not storage.exists(path) and set(storage.list_files(out)) - {storage.join(WORK, directory.LOCK)}:
        raise RefusedError(f"{out}: holds something that is no model; give an empty directory")
    with lock.holding(storage.join(out, WORK)):
        was = storage.read_json(path, dict, "give a new --out")
        if was is None:
            storage.write_bytes(path, json.dumps(facts, indent=1).encode())
        else:
            _refuse_other(out, was, facts)
            log.info("going on in %s", out)
        yield


def complete(model: Artifact, out: str) -> Artifact:
    """Writes a calibrated model with its card; the claim ends."""
    storage.write_bytes(storage.join(out, card.NAME), card.write(model).encode())  # the artifact's last file comes last
    artifact.save(model, out)
    storage.remove(storage.join(out, WORK))
    return artifact.load(out)


def _refuse_other(out: str, was: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    was = {name: was.get(name) for name in facts}
    was["config"] = configuration.complete(was["config"] or {}, out)
    if differs := directory.differences(was, facts):
        raise RefusedError(f"{out}: is another model: {'; '.join(differs)}; give a new --out")
