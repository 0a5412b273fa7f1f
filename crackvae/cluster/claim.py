"""A model's directory while the model is made: it belongs to one training or calibration, which goes on there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import pyarrow as pa

from crackvae import config as configuration
from crackvae import storage
from crackvae.errors import RefusedError
from crackvae.model import artifact, card
from crackvae.model.artifact import Artifact
from crackvae.run import directory
from crackvae.terminal import log

WORK = ".training"  # below the model's directory; gone when the model is complete
FACTS = "training.json"


def fingerprint(*tables: pa.Table) -> str:
    """SHA-256 of what the images of each table contain; names and places do not matter."""
    digest = sha256()
    for table in tables:
        digest.update("".join(sorted(map(str, table["content_hash"].to_pylist()))).encode())
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


def claim(out: str, facts: Mapping[str, Any]) -> None:
    """Takes an empty directory, or goes on in one that these facts have taken.

    Raises:
        RefusedError: It holds something else.
    """
    path = storage.join(out, WORK, FACTS)
    if storage.exists(path):
        _refuse_other(out, json.loads(storage.read_bytes(path)), facts)
        log.info("going on in %s", out)
        return
    if next(storage.list_files(out), None) is not None:
        raise RefusedError(f"{out}: holds something that is no model; give an empty directory")
    storage.write_bytes(path, json.dumps(facts, indent=1).encode())


def complete(model: Artifact, out: str) -> Artifact:
    """Writes a calibrated model with its card; the claim ends."""
    storage.write_bytes(storage.join(out, card.NAME), card.write(model).encode())  # the artifact's last file comes last
    artifact.save(model, out)
    storage.remove(storage.join(out, WORK))
    return artifact.load(out)


def _refuse_other(out: str, was: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    was = {name: was.get(name) for name in facts}
    was["config"] = configuration.complete(was["config"] or {}, out)
    differs = directory.differences(was, facts)
    if differs:
        raise RefusedError(f"{out}: is another model: {'; '.join(differs)}; give a new --out")
