"""Builds sdist and wheel, installs the wheel in a virtual environment of its own, scores images with it.

The wheel is built from the sdist, so neither lacks a file. The environment has no crackvae but the wheel's; the
libraries are those of this one, which has the versions of constraints.txt, so that it takes seconds and not minutes.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"

IMAGES = """from pathlib import Path; from crackvae.images import synthetic
synthetic.write_survey(Path('images'), normals=6, cracks=2, size=256)"""
WHERE = "import crackvae; print(crackvae.__file__)"


def main() -> None:
    """Raises where something is wrong; prints what was made."""
    shutil.rmtree(DIST, ignore_errors=True)
    _run(ROOT, sys.executable, "-m", "build", "--no-isolation", "--outdir", str(DIST), ".")
    (wheel,) = DIST.glob("*.whl")
    (sdist,) = DIST.glob("*.tar.gz")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        venv.create(place / "venv", with_pip=True)
        python = place / "venv" / "bin" / "python"
        site = Path(_run(place, python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
        # A path in a .pth file: the .pth files there, that of the editable install among them, are not read.
        (site / "libraries.pth").write_text(sysconfig.get_path("purelib"))
        install = ("-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--ignore-installed")
        _run(place, python, *install, wheel)
        assert _run(place, python, "-c", WHERE).startswith(str(place)), "another crackvae than the wheel's"
        crackvae = place / "venv" / "bin" / "crackvae"
        version = _run(place, crackvae, "--version").strip()
        assert version == f"crackvae {wheel.name.split('-')[1]}", version
        _run(place, python, "-c", IMAGES)
        _run(place, crackvae, "score", "pretrained", "images", "--out", "run")
        checked = _run(place, crackvae, "check", "run").splitlines()
        assert "8 of 8 files" in checked[1], checked
        assert (place / "run" / "report.html").exists()
    print(f"{version}: {wheel.relative_to(ROOT)} scores images by itself; {sdist.relative_to(ROOT)}")


def _run(folder: Path, *command: str | Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    main()
