"""Four bridge decks of SDNET2018: the cells of whole photographs, each scored by a model of the other three."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from comparison import beside, cached, crackvae, deciding, resampled, shown
from PIL import Image

from crackvae import schema
from crackvae.report.tables import markdown

PHOTOS = ("7001", "7002", "7003", "7004")
BASELINES = ("darkness line", "line filter")

_HUB = "7002"  # overlaps each of the others enough
_SMALL = 0.35  # of the size at which photographs are matched
_NEAR_PX = 25  # the ground is nearly flat, the lens nearly straight
_BLOCK = 3  # cells a side: neighbouring cells hang together
_ALPHA = 0.05


def train(data: Path, work: Path, photo: str, seed: int = 0) -> Path:
    """A model of the sound cells of the other photographs."""
    others, planned = write_cells(data, work, photo), work / f"{photo}-split.parquet"
    if not planned.exists():
        crackvae("index", others, "--out", work / f"{photo}.parquet")
        none = ("--external-normal", 0, "--external-crack", 0)
        crackvae("split", work / f"{photo}.parquet", "--out", planned, *none)
    config = work / f"decks-{seed}.toml"
    config.write_text(f"[training]\nseed = {seed}\n")
    crackvae("train", planned, "--out", work / f"{photo}-{seed}", "--config", config)
    return work / f"{photo}-{seed}"


def write_cells(data: Path, work: Path, photo: str) -> Path:
    """The labelled cells of the other photographs, as images."""
    folder = work / f"without-{photo}"
    if folder.exists():
        return folder
    labels = pd.read_csv(data / "sdnet2018-decks" / "tiles.csv")
    for other, rows in labels[~labels.photo.str.startswith(photo)].groupby("photo"):
        with Image.open(data / "sdnet2018-decks" / str(other)) as image:
            image.load()
        for cell in rows.itertuples():
            path = folder / ("crack" if cell.cracked else "normal") / f"{other}-{cell.row:02d}-{cell.col:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.crop((cell.x, cell.y, cell.x + cell.width, cell.y + cell.height)).save(path)
    return folder


def cells(data: Path, work: Path, name: str, models: dict[str, Path | str]) -> pd.DataFrame:
    """The cells of all four photographs: label, block, the worst tile's score, its p-value and the baselines.

    Args:
        data: Real data.
        work: What was made is kept there.
        name: Of what is kept.
        models: By photograph.
    """

    def make() -> pd.DataFrame:
        return pd.concat([_cells(data, photo, model) for photo, model in models.items()], ignore_index=True)

    return cached(work / f"cells-{name}.parquet", make)


def _cells(data: Path, photo: str, model: Path | str) -> pd.DataFrame:
    from crackvae.images.evidence import STEP
    from crackvae.images.tile import darkness, line_filter
    from crackvae.model import artifact
    from crackvae.model.photograph import PhotoScorer, tile_scores
    from crackvae.statistics import calibration

    labels = pd.read_csv(data / "sdnet2018-decks" / "tiles.csv")
    table = labels[labels.photo.str.startswith(photo)].reset_index(drop=True)
    with Image.open(data / "sdnet2018-decks" / f"{photo}.jpg") as image:
        ycc_HW3 = np.asarray(image.convert("YCbCr"))
    gray_HW = np.ascontiguousarray(ycc_HW3[..., 0])
    loaded = artifact.load(str(model))
    assert loaded.calibration is not None
    assert loaded.photographs is not None
    scorer = PhotoScorer(loaded, "cpu", loaded.config.scoring.precision)
    evidence_hw, judged_hw = scorer.anomaly_map(gray_HW, np.ascontiguousarray(ycc_HW3[::8, ::8, 1:]), None)
    scores = []
    for cell in table.itertuples():
        rows, columns = slice(cell.y, cell.y + cell.height), slice(cell.x, cell.x + cell.width)
        places = tuple(slice(side.start // STEP, side.stop // STEP) for side in (rows, columns))
        cell_HW = np.ascontiguousarray(gray_HW[rows, columns])
        score_N = tile_scores(evidence_hw[places], cell_HW, loaded.photographs.darkness, size=128, overlap=32)
        scores.append((float(score_N.max()), bool(judged_hw[places].all()), darkness(cell_HW), line_filter(cell_HW)))
    table = table.join(pd.DataFrame(scores, columns=["crackvae", "judged", *BASELINES]))
    return table.assign(
        photo=photo,
        is_crack=table.cracked.astype(bool),
        group=photo + (table.row // _BLOCK).astype(str) + "-" + (table.col // _BLOCK).astype(str),
        # The calibration's images are cells too, where the model is of cells.
        p_value=calibration.p_values(table.crackvae.to_numpy(), loaded.calibration.normals.worst_tile_n),
        **{
            f"{name}, p": calibration.p_values(table[name].to_numpy(), loaded.calibration.baselines[of])
            for name, of in zip(BASELINES, schema.BASELINES, strict=True)
        },
    )


def ground_once(data: Path, frame: pd.DataFrame) -> pd.DataFrame:
    """The cells whose middle no photograph before theirs shows: the four overlap by a quarter to two thirds."""
    to_hub = _to_hub(data)
    seen = np.zeros(len(frame), bool)
    for number, photo in enumerate(PHOTOS):
        own = (frame.photo == photo).to_numpy()
        middle_2N = np.stack([frame.x + frame.width / 2, frame.y + frame.height / 2])[:, own]
        for before in PHOTOS[:number]:
            place_2N = (np.linalg.inv(to_hub[before]) @ to_hub[photo] @ np.vstack([middle_2N, np.ones(own.sum())]))[:2]
            with Image.open(data / "sdnet2018-decks" / f"{before}.jpg") as image:
                seen[own] |= ((place_2N >= 0) & (place_2N < np.array(image.size)[:, None])).all(axis=0)
    return frame[~seen]


def _to_hub(data: Path) -> dict[str, np.ndarray]:
    """Of each photograph the 3x3 similarity that brings its pixels to those of the hub (SIFT, Lowe 2004; RANSAC)."""
    cv2.setRNGSeed(0)
    sift, matcher, found = cv2.SIFT_create(12_000), cv2.BFMatcher(), {}
    for photo in PHOTOS:
        with Image.open(data / "sdnet2018-decks" / f"{photo}.jpg") as image:
            small = image.convert("L").resize([round(side * _SMALL) for side in image.size])
        found[photo] = sift.detectAndCompute(np.asarray(small), None)
    made = {_HUB: np.eye(3)}
    for photo in set(PHOTOS) - {_HUB}:
        pairs = matcher.knnMatch(found[photo][1], found[_HUB][1], k=2)
        pairs = [first for first, second in pairs if first.distance < 0.8 * second.distance]
        start_N2 = np.array([found[photo][0][pair.queryIdx].pt for pair in pairs]) / _SMALL
        end_N2 = np.array([found[_HUB][0][pair.trainIdx].pt for pair in pairs]) / _SMALL
        similarity, _ = cv2.estimateAffinePartial2D(start_N2, end_N2, ransacReprojThreshold=_NEAR_PX)
        made[photo] = np.vstack([similarity, [0, 0, 1]])
    return made


def report(data: Path, frame: pd.DataFrame) -> str:
    """Pooled with intervals and paired differences, all and each piece of ground once; then by photograph."""
    rows = []
    for photo, group in frame.groupby("photo"):
        metrics = {name: resampled(group, name).intervals() for name in ("crackvae", *BASELINES)}
        sound, cracked = (group[group.is_crack == label] for label in (False, True))
        rows.append(
            [str(photo), f"{len(cracked)} of {len(group)}", *(shown(m["roc_auc"]) for m in metrics.values()),
             shown(metrics["crackvae"]["recall_at_5pct_fpr"]),
             f"{(sound.p_value <= _ALPHA).mean():.1%}", f"{(cracked.p_value <= _ALPHA).mean():.1%}"]
        )  # fmt: skip
    header = [
        "photograph",
        "cracked",
        "ROC-AUC",
        *BASELINES,
        "recall at 5%",
        "sound cells flagged at alpha 5%",
        "cracked",
    ]
    p_values = {"crackvae": "p_value"} | {name: f"{name}, p" for name in BASELINES}
    once = ground_once(data, frame)
    tables = [beside(frame, "crackvae", BASELINES), deciding(frame, p_values, _ALPHA), "Each piece of ground once:"]
    tables += [beside(once, "crackvae", BASELINES), deciding(once, p_values, _ALPHA), markdown(header, rows)]
    return "\n\n".join(tables)


def worst(data: Path, frame: pd.DataFrame, folder: Path) -> None:
    """The ten worst misses and the ten highest false alarms, as a picture each."""
    frame = frame.sort_values("crackvae")
    chosen = {"misses": frame[frame.is_crack].head(10), "false-alarms": frame[~frame.is_crack].tail(10)[::-1]}
    for name, part in chosen.items():
        strip = []
        for cell in part.itertuples():
            with Image.open(data / "sdnet2018-decks" / f"{cell.photo}.jpg") as image:
                crop = image.crop((cell.x, cell.y, cell.x + cell.width, cell.y + cell.height)).convert("L")
            strip.append(np.pad(np.asarray(crop), 2))
        Image.fromarray(np.hstack(strip)).save(folder / f"decks-{name}.png")
