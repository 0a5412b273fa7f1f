"""A real S3 server on loopback (moto's), as a process of its own, and what a client of it needs.

Run as a program it serves until its standard input ends, so that it never outlives who started it.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

KEY, SECRET = "AKIACRACKVAETEST", "never-to-be-seen/in+a=run"
BUCKET = "survey-bucket"


def environment(url: str) -> dict[str, str]:
    """The variables that lead to the server."""
    return {
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_ENDPOINT_URL": url,
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def process_environment(url: str) -> dict[str, str]:
    """The whole environment of a process: what this one has of AWS is left out."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    return kept | environment(url) | {"RAY_worker_niceness": "0"}


def crackvae(url: str, *arguments: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """Runs a command of crackvae with the server's environment: workers of Ray have it too."""
    command = [sys.executable, "-m", "crackvae", *arguments]
    return subprocess.run(
        command,
        env=process_environment(url),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def client(url: str) -> Any:
    """A client that shares no code with crackvae's own."""
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id=KEY,
        aws_secret_access_key=SECRET,
        config=Config(max_pool_connections=8),
    )


def put(url: str, objects: Iterable[tuple[str, bytes]]) -> None:
    """Makes objects, by key."""
    s3 = client(url)
    with ThreadPoolExecutor(4) as pool:
        for made in [pool.submit(s3.put_object, Bucket=BUCKET, Key=key, Body=data) for key, data in objects]:
            made.result()


def keys(url: str, prefix: str = "") -> list[str]:
    """The keys with a prefix."""
    pages = client(url).get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
    return [item["Key"] for page in pages for item in page.get("Contents", ())]


def get(url: str, prefix: str = "") -> dict[str, bytes]:
    """The objects with a prefix, by the rest of the key."""
    s3 = client(url)
    return {key.removeprefix(prefix): s3.get_object(Bucket=BUCKET, Key=key)["Body"].read() for key in keys(url, prefix)}


def put_folder(url: str, folder: Path, prefix: str) -> None:
    """Copies a folder to the server."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    put(url, ((prefix + path.relative_to(folder).as_posix(), path.read_bytes()) for path in paths))


def get_folder(url: str, prefix: str, folder: Path) -> None:
    """Copies what has a prefix to a folder, markers of folders apart."""
    for name, data in get(url, prefix).items():
        if not name.endswith("/") and name:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)


@contextmanager
def running() -> Iterator[str]:
    """Starts a server with an empty bucket, gives its URL, and ends it."""
    pipe, null = subprocess.PIPE, subprocess.DEVNULL
    process = subprocess.Popen([sys.executable, __file__], stdin=pipe, stdout=pipe, stderr=null, text=True)
    try:
        assert process.stdout is not None
        url = f"http://127.0.0.1:{int(process.stdout.readline())}"
        client(url).create_bucket(Bucket=BUCKET)
        yield url
    finally:
        process.kill()
        process.communicate()


def _serve() -> None:
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    served = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    served.start()
    print(served.get_host_and_port()[1], flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    _serve()
