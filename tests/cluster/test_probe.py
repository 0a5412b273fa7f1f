"""What no test on real nodes brings about: nodes that differ, and full disks. The rest is in test_submit.py."""

import shutil
from collections import namedtuple

import pytest

from crackvae.cluster import probe
from crackvae.errors import InputError
from crackvae.terminal import SENT_BY

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def options(tmp_path):
    (tmp_path / "survey").mkdir()
    return {"model": "pretrained", "sources": [str(tmp_path / "survey")], "out": str(tmp_path / "run"), "device": "cpu"}


def answers(monkeypatch, problems, equal):
    monkeypatch.setattr(probe, "_ask", lambda *_: (problems, equal))


def test_nodes_that_differ_are_named_with_what_differs(options, monkeypatch):
    ours = "crackvae 1, Ray 2.60, Python 3.11.7, AVX-512, int8, torch 2.13"
    answers(monkeypatch, {"a": "", "b": "", "c": ""}, {ours: "a", ours.replace("3.11.7", "3.11.9"): "c"})
    with pytest.raises(InputError, match=r"^node a has Python 3.11.7, c Python 3.11.9; make them equal$"):
        probe.check(options)
    answers(monkeypatch, {"a": "", "b": ""}, {ours: "a"})
    probe.check(options)


def test_another_version_than_that_of_the_sender_is_refused_before_a_node_is_asked(options, monkeypatch):
    monkeypatch.setattr(probe, "_ask", lambda *_: pytest.fail("was asked"))
    monkeypatch.setenv(SENT_BY, "crackvae 0.0.1, Ray 1.0")
    with pytest.raises(InputError, match=r"^the cluster has .*, here is crackvae 0.0.1, Ray 1.0; make them equal$"):
        probe.check(options)


def test_what_is_wrong_on_a_node_is_told_and_nothing_is_left_behind(options, monkeypatch, tmp_path):
    answers(monkeypatch, {"a": "", "b": "0.5 GB are free"}, {})
    with pytest.raises(InputError, match=r"^node b: 0.5 GB are free$"):
        probe.check(options)
    assert not list((tmp_path / "run").iterdir())


@pytest.mark.parametrize(
    ("total", "free", "is_full"),
    [(10**12, 10**11, False), (10**12, 4 * 10**10, True), (10**10, 9 * 10**8, True), (2 * 10**10, 2 * 10**9, False)],
)
def test_a_disk_that_ray_would_not_spill_to_is_told_by_its_node(tmp_path, monkeypatch, total, free, is_full):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(total, total - free, free))
    problem, _ = probe._look([str(tmp_path)], str(tmp_path / "run"), "/tmp/ray/session", "CPU")
    expected = f"{free / 1e9:.1f} GB are free in /tmp/ray/session, too few for Ray to spill to; make room"
    assert problem == (expected if is_full else "")
