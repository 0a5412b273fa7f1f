"""Labels from the names of folders, or from the values of a column."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath

import pandas as pd
import pyarrow as pa

from crackvae.errors import InputError, UsageError
from crackvae.schema import Label

# Lower case, letters and digits only: Non-Crack, non_crack and noncrack are one name.
# CD, UD and the like are SDNET2018's: cracked or uncracked deck, pavement, wall.
VOCABULARY: Mapping[str, Label] = {
    **dict.fromkeys(
        "normal negative neg noncrack noncracked nocrack nocracks uncracked uncrack undamaged "
        "intact good sound ud up uw".split(),
        Label.NORMAL,
    ),
    **dict.fromkeys(
        "crack cracks cracked positive pos damaged defect cd cp cw".split(),
        Label.CRACK,
    ),
}


def vocabulary(normal: Sequence[str], crack: Sequence[str]) -> Mapping[str, Label]:
    """The names that mean a label: those given, or where none are given the common ones.

    Raises:
        UsageError: A name is given for both.
    """
    if not normal and not crack:
        return VOCABULARY
    of_normal, of_crack = ({_plain(name): name for name in names} for names in (normal, crack))
    for both in of_normal.keys() & of_crack.keys():
        raise UsageError(f"--normal {of_normal[both]!r} and --crack {of_crack[both]!r} are one name; drop one")
    return {**dict.fromkeys(of_normal, Label.NORMAL), **dict.fromkeys(of_crack, Label.CRACK)}


def from_folders(
    paths: Sequence[str], root: str, names: Mapping[str, Label], *, required: bool = False
) -> list[Label | None]:
    """Labels files by the nearest folder whose name means one.

    Args:
        paths: Relative paths with `/`.
        root: Name of the folder or archive that they are relative to. It labels all files where
            no folder in it means a label.
        names: From `vocabulary`.
        required: Whether finding no label at all is an error (the names were given by hand).

    Returns:
        One label per path; all None where no folder name means a label.

    Raises:
        InputError: Some files lie in folders that mean a label and others do not.
    """
    of_folder = {folder: _label(folder, names) for folder in {_folder(path) for path in paths}}
    if not any(of_folder.values()):
        label = names.get(_plain(root))
        of_folder = dict.fromkeys(of_folder, label)
    labels = [of_folder[_folder(path)] for path in paths]
    if required and not any(labels):
        raise InputError(f"{root}: no folder is named {_listed(names)}; found {_found(paths)}")
    if any(labels) and not all(labels):
        unknown = [path for path, label in zip(paths, labels, strict=True) if label is None]
        raise InputError(
            f"{root}: some folders mean no label: {_found(unknown)}; name them with "
            "--normal NAME or --crack NAME, or index them as a source of their own"
        )
    return labels


def from_column(values: Iterable[object], origin: str, names: Mapping[str, Label]) -> list[Label | None]:
    """Labels from a table's column: names as in `vocabulary`, else 0 or 1, false or true; or null.

    Raises:
        InputError: A value means no label.
    """
    known = {
        "0": Label.NORMAL,
        "1": Label.CRACK,
        "false": Label.NORMAL,
        "true": Label.CRACK,
        **names,  # last: with --normal 1 --crack 0 a 1 is normal
    }
    labels: list[Label | None] = []
    for value in values:
        label = None if value is None or value == "" else known.get(_plain(str(value)))
        if label is None and value not in (None, ""):
            raise InputError(f"{origin}: label {value!r} is unknown; use {_listed(names)}")
        labels.append(label)
    return labels


def by_image(table: pa.Table, origin: str, column: str) -> pd.Series:
    """Labels of a table with the columns image_id and `column`, by image_id; rows without a label are left out.

    Raises:
        InputError: A column is missing, a value means no label, an image has two labels, or none has any.
    """
    for name in ("image_id", column):
        if table.schema.names.count(name) != 1:
            found = ", ".join(map(repr, table.schema.names))
            raise InputError(f"{origin}: needs one column {name!r}; found {found}")
    values = from_column(table[column].to_pylist(), origin, VOCABULARY)
    image_id = [name if name is None else str(name) for name in table["image_id"].to_pylist()]
    frame = pd.DataFrame({"image_id": image_id, "label": [v and str(v) for v in values]}, dtype=object)
    if frame.loc[frame["label"].notna(), "image_id"].isna().any():
        raise InputError(f"{origin}: a row with a label has no image_id; fill or remove it")
    frame = frame.dropna().drop_duplicates()
    twice = frame["image_id"][frame["image_id"].duplicated()]
    if len(twice):
        raise InputError(
            f"{origin}: {len(twice):,} images are named twice with different labels, first {twice.iloc[0]!r}; keep one"
        )
    if frame.empty:
        raise InputError(f"{origin}: holds no label in column {column!r}; use {_listed(VOCABULARY)}")
    return frame.set_index("image_id")["label"]


def _plain(name: str) -> str:
    try:
        return f"{float(name):.15g}"  # a number keeps its sign and point: 1.0 is 1, and -1 is not
    except ValueError:
        pass
    return re.sub(r"[\W_]+", "", name.lower())


def _folder(path: str) -> str:
    return path.rpartition("/")[0]


def _label(folder: str, names: Mapping[str, Label]) -> Label | None:
    for part in reversed(PurePosixPath(folder).parts):
        if _plain(part) in names:
            return names[_plain(part)]
    return None


def _found(paths: Sequence[str]) -> str:
    counts = Counter(_folder(path) or "." for path in paths)
    shown = [f"{folder!r} ({count})" for folder, count in counts.most_common(5)]
    return ", ".join(shown) + (" ..." if len(counts) > 5 else "")


def _listed(names: Mapping[str, Label]) -> str:
    return ", ".join(sorted(names))
