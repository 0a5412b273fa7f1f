"""The model artifact: a directory that holds everything needed to score, and no pickle.

::

    artifact.json         config, provenance, and the SHA-256 of each other file; written last
    weights.safetensors   the network
    calibration.parquet   what the calibration normals scored; absent before calibration
    photographs.json      how photographs of many tiles are judged; absent where an image is one tile
    history.json          one record per epoch
    README.md             the model card (card.py), for people: not checked, so that they may add to it
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import safetensors.torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor

from crackvae import config as configuration
from crackvae import storage
from crackvae.config import Config
from crackvae.errors import ArtifactError
from crackvae.images.evidence import Scale
from crackvae.model.network import ConvVAE
from crackvae.model.quantised import LARGEST
from crackvae.schema import BASELINES, LOOKS, SCHEMA_VERSION
from crackvae.statistics.calibration import Normals
from crackvae.statistics.domain import Domain

FORMAT = "crackvae model"
INDEX = "artifact.json"
WEIGHTS = "weights.safetensors"
CALIBRATION = "calibration.parquet"
PHOTOGRAPHS = "photographs.json"
HISTORY = "history.json"
PRETRAINED = "pretrained"
"""The location that stands for the model that comes with the package."""


@dataclass(frozen=True)
class Calibration:
    """What the n calibration normals scored.

    Attributes:
        image_id: Of each.
        baselines: float32, of each of `schema.BASELINES`; its threshold follows from it.
        looks: float32, of each of `schema.LOOKS`; a survey is compared with them.
        normals: float32 and int32; p-values and threshold follow from it.
    """

    image_id: list[str]
    baselines: dict[str, NDArray[np.float32]]
    looks: dict[str, NDArray[np.float32]]
    normals: Normals

    @classmethod
    def of(cls, scored: pa.Table) -> Calibration:
        """Of rows of `as_table`, `schema.PART` or `schema.RESULTS` that have a score."""
        worst_tile = pc.coalesce(scored["worst_tile_score"], scored["score"])  # null where an image is one tile
        tiles_n = scored["tiles"].fill_null(1).to_numpy()
        normals = Normals(scored["score"].to_numpy(), worst_tile.to_numpy(), tiles_n)
        baselines, looks = ({name: scored[name].to_numpy() for name in names} for names in (BASELINES, LOOKS))
        return cls(scored["image_id"].to_pylist(), baselines, looks, normals)

    def as_table(self) -> pa.Table:
        """For Parquet, in the artifact and in each of its runs."""
        return pa.table(
            {
                "image_id": pa.array(self.image_id, pa.string()),
                "score": pa.array(self.normals.score_n, pa.float32()),
                **{name: pa.array(score_N, pa.float32()) for name, score_N in (self.baselines | self.looks).items()},
                "worst_tile_score": pa.array(self.normals.worst_tile_n, pa.float32()),
                "tiles": pa.array(self.normals.tiles_n, pa.int32()),
            }
        )


@dataclass(frozen=True)
class Photographs:
    """How photographs of many tiles are judged.

    Attributes:
        domain: Which tiles are like those of the training images.
        scale: What evidence for a line is compared with.
        darkness: Median minus 3rd percentile of gray levels that one training tile in a thousand exceeds.
        size_exponent: xi; the score of a photograph of m tiles is its worst tile's score / m^xi.
        map_limit: The evidence that a share alpha of the calibration normals exceeds somewhere, without those
            that joined by a review; infinite before calibration.
    """

    domain: Domain
    scale: Scale
    darkness: float
    size_exponent: float
    map_limit: float = math.inf


@dataclass(frozen=True)
class Artifact:
    """A model as it lies on disk.

    Attributes:
        config: What it was made with; `scoring.precision` is what it was calibrated in.
        weights: The network's state, and LARGEST, of which int8 makes use.
        calibration: None for a model that is not calibrated yet.
        history: One record per epoch: epoch, mse, kl, val_mse, images, images_per_second, seconds.
        provenance: Data fingerprint, counts, versions, machine, date.
        fingerprint: SHA-256 of artifact.json, and so of every file.
        photographs: None where an image is one tile.
    """

    config: Config
    weights: dict[str, Tensor]
    calibration: Calibration | None
    history: list[dict[str, float]]
    provenance: dict[str, Any]
    fingerprint: str = ""
    photographs: Photographs | None = None

    @property
    def calibrated(self) -> Calibration:
        """The calibration.

        Raises:
            ArtifactError: There is none yet.
        """
        if self.calibration is None:
            raise ArtifactError("the model is not calibrated; `crackvae train` does it at its end")
        return self.calibration

    @property
    def precision(self) -> str:
        """To score in: that of the calibration; of a model calibrated in bf16 on a GPU, the fastest of a processor."""
        asked, calibrated_on = self.config.scoring.precision, self.provenance.get("calibrated_on", {})
        if asked == "bf16" and calibrated_on.get("device") == "cuda":  # else 20 times slower than fp32, without AMX or
            return "int8" if LARGEST in self.weights else "auto"  # AVX-512 BF16; both mean bf16 where a GPU has it
        return asked

    def network(self) -> ConvVAE:
        """Builds the network and loads its weights, in evaluation mode.

        Raises:
            ArtifactError: The weights do not fit the config.
        """
        network = build_network(self.config)
        try:
            network.load_state_dict({name: value for name, value in self.weights.items() if name != LARGEST})
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise ArtifactError(f"{WEIGHTS}: does not fit its config: {reason}") from error
        return network.eval()

    def largest_activations(self) -> Tensor:
        """What `quantised.QuantisedVAE` needs besides the network.

        Raises:
            ArtifactError: The model was trained before there was such a thing.
        """
        if LARGEST not in self.weights:
            raise ArtifactError(f"{WEIGHTS}: has no {LARGEST}, which int8 needs; train the model again")
        return self.weights[LARGEST]


def build_network(config: Config) -> ConvVAE:
    """The network that a config describes, with fresh weights."""
    network = config.network
    return ConvVAE(config.image.tile_size, network.channels, network.latent, network.likelihood)


def save(artifact: Artifact, location: str) -> None:
    """Writes an artifact; until its last file is there, nothing takes it for one."""
    files = {
        WEIGHTS: safetensors.torch.save(artifact.weights),
        HISTORY: json.dumps(artifact.history, indent=1).encode(),
    }
    if artifact.calibration is not None:
        buffer = io.BytesIO()
        pq.write_table(artifact.calibration.as_table(), buffer)
        files[CALIBRATION] = buffer.getvalue()
    if artifact.photographs is not None:
        files[PHOTOGRAPHS] = _photographs_bytes(artifact.photographs)
    for name, data in files.items():
        storage.write_bytes(storage.join(location, name), data)
    index: dict[str, Any] = {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "config": artifact.config.model_dump(mode="json"),
        "provenance": artifact.provenance,
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
    }
    index["sha256"] = _checksum(index)
    storage.write_bytes(storage.join(location, INDEX), json.dumps(index, indent=1).encode())


def _checksum(index: dict[str, Any]) -> str:
    """Of everything else in the index."""
    rest = {name: value for name, value in index.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def is_artifact(location: str) -> bool:
    """Whether a whole artifact lies there."""
    return storage.exists(storage.join(location, INDEX))


def load(location: str) -> Artifact:
    """Reads an artifact and checks every byte of it.

    Args:
        location: Its directory, or PRETRAINED.

    Raises:
        ArtifactError: It is missing, foreign, newer than this crackvae, truncated or altered.
    """
    if location == PRETRAINED:
        location = str(resources.files("crackvae") / PRETRAINED)
    data, index = _read_index(location)
    files = {name: _read_file(location, name, sha) for name, sha in index["files"].items()}
    config = configuration.parse(index["config"], storage.join(location, INDEX))
    try:
        weights = safetensors.torch.load(files[WEIGHTS])
        history = json.loads(files[HISTORY])
        calibration = Calibration.of(pq.read_table(io.BytesIO(files[CALIBRATION]))) if CALIBRATION in files else None
        photographs = _read_photographs(files[PHOTOGRAPHS]) if PHOTOGRAPHS in files else None
    except (KeyError, TypeError, ValueError, SafetensorError, pa.ArrowException) as error:
        raise ArtifactError(f"{location}: is damaged: {error}") from error
    fingerprint = hashlib.sha256(data).hexdigest()
    return Artifact(config, weights, calibration, history, index["provenance"], fingerprint, photographs)


def _read_index(location: str) -> tuple[bytes, dict[str, Any]]:
    path = storage.join(location, INDEX)
    try:
        data = storage.read_bytes(path)
    except OSError as error:
        raise ArtifactError(f"{location}: is no model (it has no {INDEX}); make one with `crackvae train`") from error
    try:
        index = json.loads(data)
        known, version = index["format"] == FORMAT, int(index["schema_version"])
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path}: is damaged or not of a crackvae model") from error
    if not known:
        raise ArtifactError(f"{path}: is not of a crackvae model")
    if version > SCHEMA_VERSION:
        raise ArtifactError(f"{path}: was written by a newer crackvae; update this one")
    if version < SCHEMA_VERSION:
        raise ArtifactError(f"{path}: was written by an older crackvae; train the model again")
    if index.get("sha256") != _checksum(index):
        raise ArtifactError(f"{path}: is truncated or altered; copy the model directory again")
    return data, index


def _read_file(location: str, name: str, sha: str) -> bytes:
    path = storage.join(location, name)
    if name not in (WEIGHTS, CALIBRATION, PHOTOGRAPHS, HISTORY):
        raise ArtifactError(f"{path}: is no part of a crackvae model")
    try:
        data = storage.read_bytes(path)
    except OSError as error:
        raise ArtifactError(f"{path}: is missing; copy the whole model directory") from error
    if hashlib.sha256(data).hexdigest() != sha:
        raise ArtifactError(f"{path}: is truncated or altered; copy the model directory again")
    return data


def _photographs_bytes(photographs: Photographs) -> bytes:
    domain = photographs.domain
    content = {
        "mean": domain.mean_F.tolist(),
        "precision": domain.precision_FF.tolist(),
        "limit": domain.limit,
        "coarsest": domain.coarsest,
        "scale": asdict(photographs.scale),
        "darkness": photographs.darkness,
        "size_exponent": photographs.size_exponent,
        "map_limit": photographs.map_limit if math.isfinite(photographs.map_limit) else None,
    }
    return json.dumps(content, indent=1).encode()


def _read_photographs(data: bytes) -> Photographs:
    content = json.loads(data)
    mean_F, precision_FF = (np.asarray(content[name], np.float64) for name in ("mean", "precision"))
    domain = Domain(mean_F, precision_FF, content["limit"], content["coarsest"])
    learnt = Scale(**content["scale"]), content["darkness"], content["size_exponent"]
    map_limit = content["map_limit"]
    return Photographs(domain, *learnt, math.inf if map_limit is None else map_limit)
