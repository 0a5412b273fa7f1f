"""What a Ray cluster runs: `ray job submit -- python jobs/score.py MODEL SOURCE --out RUN`."""

import sys

from crackvae.cli import main

if __name__ == "__main__":
    sys.exit(main(["score", *sys.argv[1:]]))
