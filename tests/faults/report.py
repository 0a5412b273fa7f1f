"""Runs every test that is marked `faults` and writes docs/reliability.md: `make test-faults`.

With arguments, which go to pytest, the table is printed instead.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reliability.md"

_COLUMNS = {
    "fault": lambda row: row["kind"],
    "when": lambda row: row["where"],
    "faults": lambda row: row["faults"],
    "runs compared": lambda row: row["runs"],
    "rows lost": lambda row: row["lost"],
    "double": lambda row: row["double"],
    "different": lambda row: row["different"],
    "files different": lambda row: row["files"],
    "torn parts": lambda row: row["torn"],
    "shards in flight": lambda row: row["flying"],
    "shards repeated": lambda row: row["repeated"],
    "at most": lambda row: "" if row["bound"] is None else row["bound"],
    "slowest stop": lambda row: f"{row['slowest']:.1f} s" if row.get("slowest") is not None else "",
    "took": lambda row: f"{row['seconds'] / 60:.1f} min",
    "test": lambda row: row["outcome"],
}

_PAGE = """\
# Reliability

Written by `make test-faults` on {date}. {machine}.

A survey of {files:,} small images in {shards} shards, every fiftieth of them damaged, is scored by `crackvae score`
with a tiny network. The job is hit from outside; no hook is in the product. Then the same command is run again until
it ends, and everything in the run directory is compared with an undisturbed run: `run.json` (its time `created`
apart), the manifest, every part, `results/`, `results.csv`, `metrics.json` and `_SUCCESS` byte by byte, and the
results row by row. The kernel counts how often each image is opened: a shard whose images are opened again is
repeated work. At a fault each worker may have one shard in flight, which is what *at most* adds up.

{faults}

{totals}

{others}## Bad input

{bad_input}
"""


class Recorder:
    """A pytest plugin that keeps what tests say with `record_property("fault", ...)`."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.others: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Called by pytest: the figures come with the teardown, after the outcome."""
        name = report.nodeid.rpartition("::")[2]
        if report.failed:
            self.others.append(f"- FAILED in {report.when}: {name}")
        elif report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            self.others.append(f"- not run: {name}: {reason.removeprefix('Skipped: ')}")
        if report.when == "teardown":
            for key, row in report.user_properties:
                if key == "fault" and isinstance(row, Mapping):
                    failed = any(name in line and "FAILED" in line for line in self.others)
                    self.rows.append({**row, "outcome": "FAILED" if failed else "passed"})


def main(arguments: Sequence[str]) -> int:
    """Runs the tests and writes the page.

    Returns:
        pytest's exit code.
    """
    sys.path.insert(0, str(ROOT / "tests"))
    os.chdir(ROOT)
    recorder = Recorder()
    code = int(pytest.main(["-m", "faults", *(arguments or ["tests"])], plugins=[recorder]))
    if arguments:
        print(_faults(recorder.rows))
    else:
        PAGE.write_text(_page(recorder))
        print(f"the page: {PAGE.relative_to(ROOT)}")
    return code


def _page(recorder: Recorder) -> str:
    sites = [row for row in recorder.rows if row.get("site_files")]
    others = "".join(f"{line}\n" for line in recorder.others)
    return _PAGE.format(
        date=date.today().isoformat(),
        machine=_machine(),
        files=sites[0]["site_files"] if sites else 0,
        shards=sites[0]["site_shards"] if sites else 0,
        faults=_faults(recorder.rows),
        totals=_totals(recorder.rows),
        others=f"## Failed or not run\n\n{others}\n" if others else "",
        bad_input=_bad_input(),
    )


def _faults(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [[str(cell(row)) for cell in _COLUMNS.values()] for row in rows]
    head = [list(_COLUMNS), ["---"] * 2 + ["---:"] * (len(_COLUMNS) - 3) + ["---"]]
    return "\n".join(f"| {' | '.join(line)} |" for line in head + lines)


def _totals(rows: Sequence[Mapping[str, Any]]) -> str:
    names = ("faults", "runs", "lost", "double", "different", "repeated")
    total = {name: sum(row[name] for row in rows) for name in names}
    return (
        f"In all {total['faults']} faults and {total['runs']} runs compared: rows lost, double, different: "
        f"{total['lost']}, {total['double']}, {total['different']}; shards repeated: {total['repeated']}."
    )


def _bad_input() -> str:
    try:
        return "\n".join(importlib.import_module("faults.bad_input").table())
    except ImportError as error:
        return f"The table is missing: {error}"


def _machine() -> str:
    models = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    names = ", ".join(f"{name} {version(name)}" for name in ("ray", "torch", "pyarrow", "filelock"))
    processor = f"{len(os.sched_getaffinity(0))} cores of {models[0] if models else 'an unknown processor'}"
    return f"{processor}, {memory:.0f} GiB of memory; Python {sys.version.split()[0]}, {names}"


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
