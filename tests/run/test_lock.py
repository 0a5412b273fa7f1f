"""One process at a time on a run."""

import threading
import time

import pytest

from crackvae import storage
from crackvae.errors import RefusedError
from crackvae.run import lock


def test_a_second_process_is_refused_on_a_local_disk(tmp_path):
    with lock.holding(str(tmp_path / "run")), pytest.raises(RefusedError, match="another process"):  # noqa: SIM117
        with lock.holding(str(tmp_path / "run")):
            pass
    with lock.holding(str(tmp_path / "run")):
        pass


def test_on_an_object_store_one_that_works_is_told_from_one_that_ended(monkeypatch):
    monkeypatch.setattr(lock, "_BEAT_SECONDS", 0.2)
    monkeypatch.setattr(lock, "_WATCH_SECONDS", 2)
    monkeypatch.setattr(lock, "_SETTLE_SECONDS", 0.2)
    system, path = storage.remote("mock://locked")
    system.create_dir(path)
    with lock.holding("mock://locked"), pytest.raises(RefusedError, match="another process"):  # noqa: SIM117
        with lock.holding("mock://locked"):
            pass
    assert not storage.exists("mock://locked/.lock")
    storage.write_bytes("mock://locked/.lock", b"of a process that was killed")
    start = time.monotonic()
    with lock.holding("mock://locked"):
        assert time.monotonic() - start > 1


def test_of_several_that_begin_at_once_on_an_object_store_one_goes_on(monkeypatch):
    monkeypatch.setattr(lock, "_BEAT_SECONDS", 0.2)
    monkeypatch.setattr(lock, "_SETTLE_SECONDS", 0.5)
    system, path = storage.remote("mock://raced")
    system.create_dir(path)
    begin, at_work, refused, end = threading.Barrier(4), [], [], threading.Event()

    def work(name):
        begin.wait()
        try:
            with lock.holding("mock://raced"):
                at_work.append(name)
                end.wait(20)
        except RefusedError:
            refused.append(name)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 20
    while len(at_work) + len(refused) < 4 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (len(at_work), len(refused)) == (1, 3)
    assert storage.exists("mock://raced/.lock")
    end.set()
    for thread in threads:
        thread.join()
    assert not storage.exists("mock://raced/.lock")
