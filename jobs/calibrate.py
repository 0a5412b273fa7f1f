"""What a Ray cluster runs: `ray job submit -- python jobs/calibrate.py MODEL NORMALS --out NEW_MODEL`."""

import sys

from crackvae.cli import main

if __name__ == "__main__":
    sys.exit(main(["calibrate", *sys.argv[1:]]))
