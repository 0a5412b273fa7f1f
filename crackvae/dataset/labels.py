"""Labels from the names of folders, or from the values of a column."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import TypedDict

import pandas as pd
import pyarrow as pa

from crackvae.dataset.table_files import check_columns
from crackvae.errors import InputError, UsageError
from crackvae.schema import Label
from crackvae.terminal import log


class Naming(TypedDict, total=False):
    """What a user said of labels, as `manifest.listing` takes it."""

    normal: Sequence[str]
    crack: Sequence[str]
    label_column: str


# Lower case, letters and digits only: Non-Crack, non_crack and noncrack are one name.
# CD, UD and the like are SDNET2018's: cracked or uncracked deck, pavement, wall.
VOCABULARY: Mapping[str, Label] = {
    **dict.fromkeys(
        "normal negative neg noncrack noncracked nocrack nocracks uncracked uncrack undamaged "
        "intact good sound ud up uw".split(),
        Label.NORMAL,
    ),
    **dict.fromkeys("crack cracks cracked positive pos damaged defect cd cp cw".split(), Label.CRACK),
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


class FolderLabels:
    """Labels the files of a source by the nearest folder whose name means one.

    Args:
        root: Name of the folder or archive that paths are relative to. It labels all files where
            no folder in it means a label.
        names: From `vocabulary`.
        required: Whether finding no label at all is an error (the names were given by hand).
        optional: Whether no file has a label, instead of an error, where only some folders mean one.
    """

    def __init__(
        self, root: str, names: Mapping[str, Label], *, required: bool = False, optional: bool = False
    ) -> None:
        self._root, self._names, self._required, self._optional = root, names, required, optional
        self._label: dict[str, Label | None] = {}  # of a folder
        self._files: Counter[str] = Counter()

    def add(self, path: str) -> Label | None:
        """The label that the folders of a relative path with `/` give it."""
        folder = path.rpartition("/")[0]
        if folder not in self._label:
            self._label[folder] = _label(folder, self._names)
        self._files[folder] += 1
        return self._label[folder]

    def of_all(self) -> tuple[bool, Label | None]:
        """Once all files were added: whether all of them have one label, in the place of their own, and that one.

        It is the root's where it is the root that means one, and none where labels are optional and unclear.

        Raises:
            InputError: Some files lie in folders that mean a label and others do not; or none is found and one
                is required.
        """
        unknown = Counter({folder: count for folder, count in self._files.items() if self._label[folder] is None})
        if len(unknown) < len(self._files):
            told = f"{self._root}: some folders mean no label: {_found(unknown)}"
            cure = "name them with --normal NAME or --crack NAME"
            if unknown and self._optional:
                log.warning("%s; so none is taken for one: %s", told, cure)
                return True, None
            if unknown:
                raise InputError(f"{told}; {cure}, or index them as a source of their own")
            return False, None
        label = self._names.get(_plain(self._root))
        if self._required and label is None:
            raise InputError(f"{self._root}: no folder is named {_listed(self._names)}; found {_found(unknown)}")
        return label is not None, label


def from_column(values: Iterable[object], origin: str, names: Mapping[str, Label]) -> list[Label | None]:
    """Labels from a table's column: names as in `vocabulary`, else 0 or 1, false or true; or null.

    Raises:
        InputError: A value means no label.
    """
    numbers = {"0": Label.NORMAL, "1": Label.CRACK, "false": Label.NORMAL, "true": Label.CRACK}
    known = numbers | {**names}  # names last: with --normal 1 --crack 0 a 1 is normal

    def label(value: object) -> Label | None:
        if value in (None, ""):
            return None
        if (plain := _plain(str(value))) not in known:
            raise InputError(f"{origin}: label {value!r} is unknown; use {_listed(names)}")
        return known[plain]

    return [label(value) for value in values]


def by_image(table: pa.Table, origin: str, column: str) -> pd.Series:
    """Labels of a table with the columns image_id and `column`, by image_id; rows without a label are left out.

    Raises:
        InputError: A column is missing, a value means no label, an image has two labels, or none has any.
    """
    check_columns(table, ("image_id", column), origin)
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


def _label(folder: str, names: Mapping[str, Label]) -> Label | None:
    for part in reversed(PurePosixPath(folder).parts):
        if _plain(part) in names:
            return names[_plain(part)]
    return None


def _found(files: Counter[str]) -> str:
    shown = [f"{folder or '.'!r} ({count})" for folder, count in files.most_common(5)]
    return ", ".join(shown) + (" ..." if len(files) > 5 else "")


def _listed(names: Mapping[str, Label]) -> str:
    return ", ".join(sorted(names))
