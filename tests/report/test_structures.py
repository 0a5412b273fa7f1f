import csv

import pyarrow as pa
import pytest

from crackvae.errors import InputError
from crackvae.report import structures
from crackvae.report.structures import UNMATCHED
from crackvae.schema import RESULTS

HEADER = "pattern,structure,element\n"


def table(*rows):
    return pa.table([list(column) for column in zip(*rows, strict=True)], schema=structures.TABLE)


def ok(image_id, score, prediction="normal", judged_fraction=1.0):
    judged = {"score": score, "p_value": 1 - score, "prediction": prediction, "judged_fraction": judged_fraction}
    return {"image_id": image_id, "uri": "file:///x", "status": "ok"} | judged


def other(image_id, status, judged_fraction=None):
    return {"image_id": image_id, "uri": "file:///x", "status": status, "judged_fraction": judged_fraction}


def blocks(rows, size):
    return [pa.Table.from_pylist(rows[i : i + size], RESULTS) for i in range(0, len(rows), size)]


ROWS = [
    ok("b1/a.jpg", 0.25),
    ok("b1/deck/b.jpg", 0.75, "crack", 0.5),
    other("b1/c.jpg", "cannot_judge", 0.125),
    other("b1/d.jpg", "undecodable"),
    ok("b2/a.jpg", 0.5, "crack"),
    ok("b2/b.jpg", 0.5, "crack"),
    ok("elsewhere.jpg", 0.125, judged_fraction=0.75),
]
TABLE = table(
    ("b1/deck/**", "Bridge 1", "deck"),
    ("b1/**", "Bridge 1", ""),
    ("b1/deck/*", "Bridge 1", ""),
    ("b2/a*", "Bridge 2", ""),
    ("b2/b*", "Bridge 2", ""),
    ("b3/**", "Bridge 3", ""),
)


@pytest.mark.parametrize("size", [1, 3, 100])
def test_results_add_up_per_structure_and_element(size):
    found = structures.aggregate(blocks(ROWS, size), TABLE)
    assert found.table.schema.equals(structures.AGGREGATES)
    rows = [tuple(row.values()) for row in found.table.to_pylist()]
    assert rows == [
        ("Bridge 3", "", 0, 0, 0, 0, 1.0, 0, None, None, None, None, None),
        ("Bridge 1", "", 3, 1, 1, 1, pytest.approx(2 / 3), 0, 0.0, 0.25, "b1/a.jpg", 0.75, pytest.approx(1.125 / 3)),
        ("Bridge 1", "deck", 1, 1, 0, 0, 0.0, 1, 1.0, 0.75, "b1/deck/b.jpg", 0.25, 0.5),
        ("Bridge 2", "", 2, 2, 0, 0, 0.0, 2, 1.0, 0.5, "b2/a.jpg", 0.5, 1.0),
        (UNMATCHED, "", 1, 1, 0, 0, 0.0, 0, 0.0, 0.125, "elsewhere.jpg", 0.875, 0.75),
    ]
    assert found.idle == ("b1/deck/*", "b3/**")


def test_only_photographs_that_no_pattern_matches_make_their_row():
    found = structures.aggregate(blocks(ROWS, 3), table(("**", "all", "")))
    assert found.table["structure"].to_pylist() == ["all"]
    assert found.table["photographs"].to_pylist() == [len(ROWS)]


def test_what_failed_has_no_coverage_whatever_its_row_says():
    found = structures.aggregate(blocks([other("a", "crashed", 1.0), ok("b", 0.5)], 2), table(("**", "all", "")))
    assert found.table["coverage"].to_pylist() == [0.5]


def test_the_worst_is_of_those_judged_and_may_not_have_the_smallest_p_value():
    unjudged = other("a", "cannot_judge") | {"score": 0.99, "p_value": 0.001}
    rows = [unjudged, ok("b", 0.75), ok("c", 0.5) | {"p_value": 0.01}]  # a bound, of a larger photograph
    [row] = structures.aggregate(blocks(rows, 3), table(("*", "all", ""))).table.to_pylist()
    assert (row["worst_score"], row["worst_image_id"], row["smallest_p_value"]) == (0.75, "b", 0.01)


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("b1/**", ["b1/a.jpg", "b1/x/y/a.jpg", "b1/"], ["b1", "b10/a.jpg", "x/b1/a.jpg", "B1/a.jpg"]),
        ("b1/*", ["b1/a.jpg"], ["b1/x/a.jpg"]),
        ("**/pier/**", ["pier/a", "x/pier/a", "x/y/pier/z/a"], ["pier", "xpier/a", "x/pier"]),
        ("**/a.jpg", ["a.jpg", "x/y/a.jpg"], ["ba.jpg"]),
        ("x/**/a", ["x/a", "x/y/a", "x/y/z/a"], ["xa", "x/ya"]),
        ("**", ["a", "x/a", "line\nbreak"], []),
        ("*_P?_*.JPG", ["DJI_P3_01.JPG"], ["DJI_P33_01.JPG", "x/DJI_P3_01.JPG"]),
        ("pier-[1-3a]/*", ["pier-2/x", "pier-a/x"], ["pier-4/x", "pier--/x"]),
        ("pier-[!1]/*", ["pier-2/x"], ["pier-1/x", "pier-//x"]),
        ("[[]1]/x.(1)+$", ["[1]/x.(1)+$"], ["1/x.(1)+$", "[1]/xy(1)+$"]),
        ("a[b", ["a[b"], ["ab"]),
        ("é?", ["éü"], ["é"]),
    ],
)
def test_patterns_match_as_they_say(pattern, matching, others):
    matches = structures._matches(pattern)
    assert [bool(matches(name)) for name in matching] == [True] * len(matching)
    assert [bool(matches(name)) for name in others] == [False] * len(others)


def test_a_table_is_read_as_text(tmp_path):
    path = tmp_path / "structures.csv"
    path.write_text('\ufeffid,pattern,structure,element\n1,007/**,007,\n2,"a,b/**",NA,1.50\n', encoding="utf-8")
    found = structures.read(str(path))
    assert found.schema.equals(structures.TABLE)
    assert found.to_pydict() == {"pattern": ["007/**", "a,b/**"], "structure": ["007", "NA"], "element": ["", "1.50"]}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("pattern,structure\na,b\n", "needs one column 'element'; found 'pattern', 'structure'"),
        ("pattern;structure;element\na;b;\n", "needs one column 'pattern'"),
        ("pattern,structure,element,pattern\na,b,,c\n", "needs one column 'pattern'"),
        (HEADER, "has no row"),
        ("", "cannot be read as CSV"),
        (HEADER + "a\n", "cannot be read as CSV"),
        (HEADER + "a,b,\n ,b,\n", "row 2 has no pattern"),
        (HEADER + "a,,deck\n", "row 1 has no structure"),
        (HEADER + "a,b,\nc,d,\na,e,\n", "row 3: pattern 'a' is in row 1 already"),
    ],
)
def test_a_wrong_table_is_an_error_that_names_file_and_row(tmp_path, text, says):
    path = tmp_path / "structures.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=f"structures.csv: .*{says}") as error:
        structures.read(str(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("data", [b"pattern,structure,element\n\xff/**,b,\n", None])
def test_a_table_that_is_no_text_or_missing_is_an_error(tmp_path, data):
    path = tmp_path / "structures.csv"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(InputError, match="cannot be read as CSV" if data else "no such file"):
        structures.read(str(path))


def test_the_csv_runs_no_formula_and_keeps_the_order(tmp_path):
    found = structures.aggregate(blocks([ok("=cmd.jpg", 0.5)], 1), table(("*", "@SUM(1)", "-1"), ("x", "plain", "")))
    found.write_csv(str(tmp_path / "structures.csv"))
    with open(tmp_path / "structures.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["structure"] for row in rows] == ["plain", "'@SUM(1)"]
    assert (rows[1]["element"], rows[1]["worst_image_id"], rows[1]["worst_score"]) == ("'-1", "'=cmd.jpg", "0.5")


def test_the_text_shows_every_row_and_idle_pattern():
    header, _, *rows = structures.aggregate(blocks(ROWS, 3), TABLE).text().split("\n")
    assert header.split("|")[1].strip() == "structure"
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows[:-2]]
    assert cells[0] == ["Bridge 3", "0", "0", "0", "0", "0", "-", "-", "-", "-", "-"]
    assert cells[2] == ["Bridge 1 deck", "1", "1", "0", "0", "1", "100.0%", "0.75", "b1/deck/b.jpg", "0.2500", "50.0%"]
    assert rows[-2:] == [f"warning: no photograph went to the pattern {name}" for name in ("b1/deck/*", "b3/**")]
