"""The smallest config that still does everything."""

from crackvae.config import Config, ImageConfig, NetworkConfig, ScoringConfig, TrainingConfig

# A network that trains in seconds; alpha so that a dozen calibration normals are enough.
TINY = Config(
    image=ImageConfig(tile_size=32, tiling="resize"),
    network=NetworkConfig(channels=(8, 8, 16, 16), latent=8, likelihood="mse"),
    training=TrainingConfig(epochs=3, batch_size=16, kl_weight=1e-5),
    scoring=ScoringConfig(score="mse", alpha=0.2, batch_size=8),
)

# The same of photographs, by `auto`.
TINY_NATIVE = TINY.model_copy(
    update={
        "image": ImageConfig(tile_size=32),
        "network": NetworkConfig(channels=(8, 8, 16, 16), latent=8),
        "scoring": ScoringConfig(alpha=0.2, batch_size=8),
    }
)

TINY_TOML = """
recipe = "reference"
[image]
tile_size = 32
[network]
channels = [8, 8, 16, 16]
latent = 8
[training]
epochs = 3
batch_size = 16
[scoring]
alpha = 0.2
batch_size = 8
"""
