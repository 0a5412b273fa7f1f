import json
import subprocess
import sys

import pytest

from crackvae import logs


def crackvae(*arguments, **environment):
    command = [sys.executable, "-m", "crackvae", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_the_last_line_of_a_failed_command_is_json_on_request(tmp_path):
    told = crackvae("check", str(tmp_path)).stderr
    assert told == f"crackvae: {tmp_path}: is no run of crackvae, or run.json is damaged\n"
    (line,) = crackvae("check", str(tmp_path), **{logs.FORMAT: "json"}).stderr.splitlines()
    record = json.loads(line)
    assert (record["level"], record["message"] + "\n") == ("error", told)


def test_another_format_is_a_warning_and_text():
    done = crackvae("check", "nowhere", **{logs.FORMAT: "xml"})
    assert done.stderr.splitlines()[0] == "CRACKVAE_LOG_FORMAT='xml': is not json; lines stay text"
    assert done.returncode == 3


@pytest.mark.parametrize("text", ["100%", "%s", "{}"])
def test_what_looks_like_a_placeholder_stays(text):
    assert logs.error_line(text) == f"crackvae: {text}"
