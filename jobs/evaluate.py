"""What a Ray cluster runs: `ray job submit -- python jobs/evaluate.py MODEL MANIFEST --out RUN`."""

import sys

from crackvae.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
