"""What a Ray cluster runs: `ray job submit -- python jobs/train.py MANIFEST --out MODEL`."""

import sys

from crackvae.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
