"""What each kind of bad or strange input becomes, by the table in `bad_input`."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import local
import numpy as np
import pyarrow as pa
import pytest
from faults import bad_input
from faults.corpus.kind import Kind

from crackvae.cluster import scoring
from crackvae.dataset import manifest, tiles
from crackvae.errors import ExitCode, ImageError, InputError
from crackvae.images.decode import decode
from crackvae.images.tile import darkness
from crackvae.model import artifact
from crackvae.run import finalize
from crackvae.schema import MANIFEST, Status

pytestmark = pytest.mark.filterwarnings(r"ignore::UserWarning:PIL\.TiffImagePlugin")
UNDECODED = [
    kind
    for kind in bad_input.FILES
    if kind.status in {Status.UNDECODABLE, Status.TOO_SMALL, Status.TOO_LARGE}
    and all(isinstance(data, bytes) for data in kind.files.values())
]
SCORED = [kind for kind in bad_input.FILES if kind.status == Status.OK]


def each(kinds):
    return pytest.mark.parametrize("kind", kinds, ids=[kind.name for kind in kinds])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Files of every kind, listed, and then changed."""
    folder = tmp_path_factory.mktemp("corpus")
    corpus = bad_input.build(folder)
    table, _ = manifest.build(corpus.sources)
    swapped = (folder / "survey/swapped.png").read_bytes()
    hashes = [tiles.hash_content(swapped) if name == "swapped.png" else None for name in table["image_id"].to_pylist()]
    index = MANIFEST.get_field_index("content_hash")
    table = table.set_column(index, MANIFEST.field(index), pa.array(hashes, pa.string()))
    manifest.write(table, str(folder / "manifest.parquet"))
    bad_input.change(folder)
    return replace(corpus, sources=[str(folder / "manifest.parquet")])


@pytest.fixture(scope="module")
def outcome(corpus, model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scored")
    loaded = artifact.load(str(model))
    limited = replace(loaded, config=loaded.config.model_copy(update={"image": bad_input.LIMITS}))
    artifact.save(limited, str(folder / "model"))
    with local.without_ray():
        return scoring.score(str(folder / "model"), corpus.sources, str(folder / "run"))


@pytest.fixture(scope="module")
def rows(outcome):
    """The rows of each image_id."""
    rows = defaultdict(list)
    for row in finalize.read_results(outcome.run).to_pylist():
        rows[row["image_id"]].append(row)
    return rows


@pytest.mark.ray
@each(bad_input.KINDS)
def test_a_job_gives_each_file_the_row_that_the_table_says(kind: Kind, corpus, rows):
    for image_id in corpus.ids[kind.name]:
        [row] = rows[image_id]
        assert (row["status"], row["message"] or "") == (kind.status, Matching(kind.message))
        if kind.status == Status.OK:
            assert row["prediction"] in {"normal", "crack"}
            assert row["darkness"] == pytest.approx(darkness(kind.gray_HW), abs=2 * kind.off)
        else:
            assert row["score"] is row["prediction"] is row["darkness"] is None


class Matching(str):
    """Equals what the regular expression matches whole, in one line that may be shown."""

    def __eq__(self, message):
        return bool(re.fullmatch(self, message)) and (message.isprintable() or not message)

    __hash__ = str.__hash__


@pytest.mark.ray
def test_a_job_of_bad_input_ends_with_one_row_a_file_and_exit_code_4(corpus, outcome, rows):
    expected = [image_id for ids in corpus.ids.values() for image_id in ids]
    assert len(set(expected)) == len(expected)
    assert sorted(rows) == sorted(expected)
    assert all(len(of_one) == 1 for of_one in rows.values())
    assert sum(outcome.metrics["counts"]["status"].values()) == len(expected)
    assert outcome.exit_code == ExitCode.TOO_MANY_FAILED


@pytest.mark.ray
def test_names_come_back_from_the_csv_file_to_the_byte_and_none_is_a_formula(outcome, rows):
    with open(f"{outcome.run}/results.csv", encoding="utf-8", newline="") as stream:
        found = {row["image_id"]: row["status"] for row in csv.DictReader(stream)}
    assert not any(name.startswith(("=", "@", "-")) for name in found)
    assert {name.removeprefix("'"): status for name, status in found.items()} == {
        image_id: row["status"] for image_id, [row] in rows.items()
    }


@each(SCORED)
def test_what_is_scored_has_the_gray_levels_that_were_photographed(kind: Kind):
    for name, data in kind.files.items():
        if isinstance(data, bytes):
            gray_HW = decode(data, min_side=16, max_megapixels=200).gray_HW
            assert gray_HW.shape == kind.gray_HW.shape, name
            assert np.abs(gray_HW.astype(int) - kind.gray_HW).max() <= kind.off, name


@each(UNDECODED)
def test_what_is_not_scored_says_why_in_one_line(kind: Kind):
    for data in kind.files.values():
        with pytest.raises(ImageError) as caught:
            decode(data, min_side=16, max_megapixels=200)
        assert (caught.value.status, caught.value.message) == (kind.status, Matching(kind.message))


@each(bad_input.REFUSED)
def test_a_source_that_cannot_be_listed_whole_is_refused_in_one_line_without_secrets(kind: Kind, tmp_path):
    for name in bad_input.make(kind, tmp_path):
        with pytest.raises(InputError, match=re.escape(kind.message)) as caught:
            manifest.build([str(tmp_path / name)])
        assert "\n" not in str(caught.value)
        assert "ter2" not in str(caught.value)


AS_NOBODY = """
import json, os, sys
from PIL import Image
from crackvae.config import ImageConfig
from crackvae.dataset import manifest, tiles
from crackvae.dataset.reader import Reader
from crackvae.errors import ImageError
Image.init()
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
table, _ = manifest.build([sys.argv[1]])
rows = {}
for row in table.to_pylist():
    try:
        tiles.read_image(Reader(), ImageConfig(), row["uri"], row["size"])
        rows[row["image_id"]] = ["ok", ""]
    except ImageError as error:
        rows[row["image_id"]] = [str(error.status), error.message]
print(json.dumps(rows))
"""


def test_what_a_user_may_not_read_is_unreadable_and_the_rest_is_scored():
    with tempfile.TemporaryDirectory() as temporary:  # pytest's own is for its user alone
        folder = Path(temporary)
        folder.chmod(0o755)
        good = Kind("readable", "", {"readable.png": bad_input.pixels.PNG})
        ids = {kind: bad_input.make(kind, folder / "survey") for kind in [good, *bad_input.FORBIDDEN]}
        bad_input.change(folder, bad_input.FORBIDDEN)
        try:
            done = subprocess.run(
                [sys.executable, "-c", AS_NOBODY, str(folder / "survey")], capture_output=True, text=True, check=False
            )
        finally:
            for path in [folder / "survey/locked", folder / "survey/closed"]:
                path.chmod(0o755)
    if "Operation not permitted" in done.stderr and os.geteuid() == 0:
        pytest.skip("this root may not become another user")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    expected = {name: [kind.status, Matching(kind.message)] for kind in ids for name in kind.members or ids[kind]}
    assert found == expected


def test_the_table_has_a_line_for_every_kind_and_no_kind_twice():
    lines = bad_input.table()
    kinds = [*bad_input.KINDS, *bad_input.FORBIDDEN, *bad_input.REFUSED]
    assert len(lines) == 2 + len(kinds) == 2 + len({kind.name for kind in kinds})
    assert all(line.count("|") == 5 and "\n" not in line for line in lines)
    assert all(kind.why and kind.name for kind in kinds)
