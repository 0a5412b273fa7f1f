"""The one config: frozen, typed, read from TOML, stored in every model artifact.

What it leaves out follows from its recipe. An unknown key or a wrong value is an error that names the
file, the field and the cure.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from crackvae.errors import ConfigError

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(gt=0.0, lt=1.0)]
# Not strict about the tuple itself, which is a list in TOML and JSON.
Channels = Annotated[tuple[Positive, Positive, Positive, Positive], Field(strict=False)]

_RECIPES: dict[str, dict[str, dict[str, Any]]] = {
    "default": {},
    "reference": {
        "image": {"tiling": "resize"},
        "network": {"channels": (32, 64, 128, 256), "latent": 128, "likelihood": "mse"},
        "training": {"kl_weight": 1e-5},
        "scoring": {"score": "mse"},
    },
}
"""What each recipe sets otherwise than the defaults of the sections."""

_TILINGS: dict[str, Literal["resize", "native"]] = {"lines": "native", "mse": "resize"}
"""What each score needs."""


class _Section(BaseModel):
    # strict: true and "10" are no numbers of epochs.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class ImageConfig(_Section):
    """How a file becomes a tile.

    Attributes:
        tiling: `resize` makes one tile of an image, whatever its shape; `native` covers it with
            overlapping tiles of its own pixels; `auto` becomes `native` in training, or `resize`
            where most training images are smaller than a tile. The artifact says which.
        overlap: Share of its side that a native tile has in common with the next.
        mm_per_pixel: Photographs are resampled to this pixel pitch before they are tiled; those
            whose own pitch is unknown `cannot_judge`. None: each at its own pitch.
        tile_size: Side of a tile in pixels; the network halves it four times.
        min_side: Images with a shorter side are `too_small`, in pixels.
        max_megapixels: Images with more pixels are `too_large`.
        max_megabytes: Files with more bytes are `too_large`.
        max_seconds: Files that take longer to decode are `crashed`; those of which nothing comes
            for so long are `unreadable`. A job tries such a file twice.
    """

    tiling: Literal["auto", "resize", "native"] = "auto"
    overlap: Annotated[float, Field(ge=0.0, le=0.5)] = 0.25
    mm_per_pixel: Annotated[float, Field(gt=0.0)] | None = None
    tile_size: Annotated[int, Field(ge=32, le=512, multiple_of=16)] = 128
    min_side: Positive = 16
    max_megapixels: Positive = 200
    max_megabytes: Positive = 500
    max_seconds: Positive = 60

    @property
    def overlap_pixels(self) -> int:
        """What neighbouring native tiles share."""
        return round(self.overlap * self.tile_size)


class NetworkConfig(_Section):
    """The ConvVAE.

    Attributes:
        channels: Output channels of the four encoder convolutions; the decoder mirrors them.
        latent: Dimensions of the latent vector.
        likelihood: What the decoder says of a pixel: `gaussian` its mean and variance, `mse` its
            value alone.
    """

    channels: Channels = (32, 64, 64, 64)
    latent: Positive = 64
    likelihood: Literal["mse", "gaussian"] = "gaussian"


class TrainingConfig(_Section):
    """How the ConvVAE is trained.

    Attributes:
        epochs: Passes over the training normals.
        batch_size: Tiles per optimiser step, over all workers together.
        learning_rate: Of Adam.
        kl_weight: Weight of the KL term in nats per tile against the mean loss of a pixel. With a
            gaussian likelihood 1 / 128^2 makes the loss the evidence lower bound per pixel.
        seed: Of weights, shuffling and reparameterisation.
        precision: `bf16` computes under autocast; `auto` is bf16 where the device is fast at it.
        tiles_per_image: Native tiles taken at most of one image, at random.
    """

    epochs: Positive = 10
    batch_size: Positive = 64
    learning_rate: Annotated[float, Field(gt=0.0)] = 1e-3
    kl_weight: Annotated[float, Field(ge=0.0)] = 1 / 128**2
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    tiles_per_image: Positive = 256


class ScoringConfig(_Section):
    """How tiles are scored and judged.

    Attributes:
        score: `lines` is the evidence for long, dark lines; it needs native tiles and a
            gaussian likelihood. `mse` is the reconstruction error; it needs images of one tile.
            `auto` follows from the tiling.
        batch_size: Tiles per pass through the network; of images of one tile, on a GPU, at least 256.
        precision: As in training, and `int8` on CPUs, which `auto` is where the CPU is fast at it.
            The artifact keeps what `auto` became when it was calibrated.
        alpha: Share of normals that may be called crack; the threshold follows from it.
        min_judged_fraction: Photographs `cannot_judge` of which a smaller share is like the
            training images.
        regions: Anomalous regions kept of a photograph, at most.
        max_failed_fraction: With a larger share of failed files a job ends with exit code 4.
    """

    score: Literal["auto", "mse", "lines"] = "auto"
    batch_size: Positive = 32
    precision: Literal["auto", "fp32", "bf16", "int8"] = "auto"
    alpha: Fraction = 0.05
    min_judged_fraction: Annotated[float, Field(ge=0.0, le=1.0)] = 0.25
    regions: Annotated[int, Field(ge=0)] = 20
    max_failed_fraction: Annotated[float, Field(ge=0.0, le=1.0)] = 0.05


class Config(_Section):
    """Everything that decides what a model is and how it scores.

    Attributes:
        recipe: Whose values hold where the file is silent. `reference` makes one tile of an image.
        image: How a file becomes a tile.
        network: The ConvVAE.
        training: How it is trained.
        scoring: How tiles are scored and judged.
    """

    recipe: Literal["default", "reference"] = "default"
    image: ImageConfig = ImageConfig()
    network: NetworkConfig = NetworkConfig()
    training: TrainingConfig = TrainingConfig()
    scoring: ScoringConfig = ScoringConfig()

    @model_validator(mode="before")
    @classmethod
    def _follow_recipe(cls, values: Any) -> Any:
        recipe = _RECIPES.get(str(values.get("recipe")), {}) if isinstance(values, dict) else {}
        for section, given in recipe.items():
            if isinstance(values.get(section, {}), dict):
                values = {**values, section: given | values.get(section, {})}
        return values

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        """A score needs its tiling, and a tiling its score."""
        if self.image.tiling not in ("auto", self.tiling):
            raise ValueError(f"scoring.score {self.scoring.score!r} needs image.tiling {self.tiling!r} or 'auto'")
        if self.tiling == "native" and self.network.likelihood != "gaussian":
            raise ValueError(
                "image.tiling 'native' needs network.likelihood 'gaussian', which tells how rough concrete is"
            )
        return self

    @property
    def tiling(self) -> Literal["auto", "resize", "native"]:
        """What score and tiling ask for."""
        return _TILINGS.get(self.scoring.score, self.image.tiling)

    def with_tiling(self, tiling: Literal["resize", "native"]) -> Config:
        """With `auto` decided, and the score that follows."""
        image = self.image.model_copy(update={"tiling": tiling})
        scoring = self.scoring.model_copy(update={"score": "lines" if tiling == "native" else "mse"})
        return self.model_copy(update={"image": image, "scoring": scoring})

    def changes(self) -> dict[str, Any]:
        """What differs from the recipe, by dotted key; empty for the recipe itself."""
        own, recipe = (leaves(config.model_dump()) for config in (self, Config(recipe=self.recipe)))
        return dict(sorted({*own} - {*recipe}))


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values in nested mappings, each with its dotted key."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def load(path: Path, recipe: str = "default") -> Config:
    """Reads a TOML file.

    Args:
        path: The file.
        recipe: The one that holds where the file names none.

    Raises:
        ConfigError: The file is missing or no TOML, or a key or value in it is wrong.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # Windows editors begin a file with a mark
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); give a TOML file") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: is not valid TOML: {error}") from error
    return parse({"recipe": recipe, **values}, str(path))


def parse(values: dict[str, Any], origin: str) -> Config:
    """Builds a config from nested values.

    Args:
        values: As read from TOML or JSON.
        origin: Where they come from, for the error message.

    Raises:
        ConfigError: A key or value is wrong.
    """
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{origin}: {_explain(first['loc'], first)}") from error


def complete(values: dict[str, Any], origin: str) -> dict[str, Any]:
    """A config that an older crackvae kept, as JSON, with the defaults of what that did not know.

    Raises:
        ConfigError: As for `parse`.
    """
    return parse(values, origin).model_dump(mode="json")


def _explain(location: tuple[int | str, ...], problem: Any) -> str:
    if not location:  # several fields at odds
        return str(problem["msg"]).removeprefix("Value error, ")
    field = ".".join(str(part) for part in location)
    if problem["type"] != "extra_forbidden":
        return f"{field} = {problem['input']!r}: {problem['msg']}"
    section: Any = Config.model_fields[str(location[0])].annotation if location[1:] else Config
    known = list(section.model_fields)
    near = difflib.get_close_matches(str(location[-1]), known, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"known here: {', '.join(known)}"
    return f"unknown key {field!r}; {hint}"
