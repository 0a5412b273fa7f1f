"""The machine that a figure was measured on."""

import os
import platform
import subprocess
from datetime import date
from pathlib import Path

import torch


def described() -> str:
    """Processor, cores, date and commit, in a line."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    processor = names[0] if names else platform.machine()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    bf16 = "with" if torch.cpu.get_capabilities().get("avx512_bf16") else "without"
    cores = len(os.sched_getaffinity(0))
    return f"{processor} ({bf16} AVX-512 BF16), {cores} cores, {date.today()}, commit {commit.stdout.strip()}"
