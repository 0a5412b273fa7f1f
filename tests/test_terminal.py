import os
import subprocess
import sys

CODE = """
import time
from crackvae.terminal import progress
with progress("scoring", 20, "images") as advance:
    for _ in range(4):
        time.sleep(0.15)
        advance(5)
"""


def test_a_terminal_shows_a_bar_with_its_rate():
    """On a real terminal: rich draws before the first rate is known."""
    master, slave = os.openpty()
    done = subprocess.Popen([sys.executable, "-c", CODE], stderr=slave)
    os.close(slave)
    shown = b""
    while True:
        try:
            data = os.read(master, 4096)
        except OSError:  # what Linux says when the other end is closed
            break
        shown += data
    os.close(master)
    assert done.wait() == 0
    assert b"scoring" in shown
    assert b"20/20" in shown
    assert b"images," in shown
    assert b"Traceback" not in shown


def test_elsewhere_nothing_is_shown():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, check=True)
    assert done.stderr == done.stdout == b""
