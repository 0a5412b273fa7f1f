"""What a Ray cluster runs: `ray job submit -- python jobs/nightly.py MODEL SOURCE --out ROOT`."""

import sys

from crackvae.cli import main

if __name__ == "__main__":
    sys.exit(main(["nightly", *sys.argv[1:]]))
