"""The model card: what an engineer reads before trusting a model. Everything in it is from the artifact."""

from __future__ import annotations

from crackvae.model.artifact import Artifact
from crackvae.statistics import calibration

NAME = "README.md"

_SCORES = {
    "lines": "evidence for long, dark lines in photographs at their own resolution",
    "mse": "the mean squared error of the whole image, resized to one tile, against its reconstruction",
}


def write(model: Artifact) -> str:
    """The card of a calibrated model as Markdown."""
    config, told = model.config, model.provenance
    parameters = sum(weight.numel() for weight in model.network().parameters())
    changes = ", ".join(f"{key} = {value}" for key, value in config.changes().items()) or "none"
    images = f"{told['train_normals']:,}" if "train_normals" in told else "an unknown number of"
    trained = [
        f"{images} sound images, no crack; SHA-256 of their contents and of the validation "
        f"images' {str(told.get('data', 'unknown'))[:16]}...",
        f"{len(model.history)} epochs, seed {config.training.seed}, {told.get('date', 'date unknown')}, "
        f"crackvae {told.get('crackvae', 'unknown')}, {told.get('machine', 'machine unknown')}",
    ]
    if told.get("start_from"):
        trained.append(f"began with the weights of model {told['start_from'][:16]}...")
    if model.history:
        trained.append(f"validation error {model.history[-1]['val_mse']:.5f} (mean squared, range -1 to 1)")
    return "\n".join(
        [
            "# Model card",
            "",
            f"A convolutional variational autoencoder of {parameters:,} parameters; recipe `{config.recipe}`, "
            f"changes: {changes}.",
            f"Its score is {_SCORES[config.scoring.score]}.",
            "",
            "**Trained on**",
            *(f"- {line}" for line in trained),
            "",
            "**Calibrated on**",
            *(f"- {line}" for line in _calibration(model)),
            "",
            "**When not to trust it.** Its p-values hold for images like those of the calibration: the same kind of "
            "surface, light, camera and distance. A run compares its images with them and warns. On other concrete, "
            "calibrate with sound images of it that this model was not trained on: "
            "`crackvae calibrate MODEL NORMALS --out NEW_MODEL`. It has seen no crack, and says what is unlike sound "
            'concrete: joints, edges, cables and drawn lines may be, too. An empty prediction never means "no crack".',
            "",
            "**Use**: `crackvae score MODEL SURVEY --out RUN`, or `crackvae.AnomalyScorer.load(MODEL).score(images)`.",
            "",
            "What you know about the data, its licence and what was measured belongs below.",
            "",
        ]
    )


def _calibration(model: Artifact) -> list[str]:
    normals, alpha = model.calibrated.normals, model.config.scoring.alpha
    limit = calibration.threshold(normals.score_n, alpha)
    rate = normals.promise(limit)
    lines = [
        f"{len(normals.score_n):,} other sound images, one of each twin group; alpha {alpha:g}, threshold {limit:.4g}",
        f"promise: a sound image exchangeable with them is flagged with a probability of {rate.expected:.1%} on "
        f"average over calibrations; the rate of this one lies in {rate.low:.1%} to {rate.high:.1%} with 95%",
    ]
    joined_runs = model.provenance.get("calibration_joined", [])
    if model.provenance.get("calibrated_model"):
        how = "added to" if joined_runs else "in the place of"
        lines.append(f"{how} the calibration of model {model.provenance['calibrated_model'][:16]}...")
    lines += [
        f"{len(joined['images']):,} of them drawn at random from run {joined['run'][:16]}..., found sound by people"
        for joined in joined_runs
    ]
    if model.photographs is not None:
        fewest, most = normals.tiles_n.min(), normals.tiles_n.max()
        lines.append(f"of {fewest:,} to {most:,} tiles; of photographs of other sizes p-values are bounds")
        pitch = model.config.image.mm_per_pixel or model.photographs.domain.coarsest
        lines.append(f"pixel pitch {f'up to {pitch:.3g} mm' if pitch else 'unknown'}")
    return lines
