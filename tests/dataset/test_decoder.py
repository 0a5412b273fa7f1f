"""Files at which the child really dies, by a signal, by memory, by an endless loop.

A decoder with a bug is imitated in the child alone: `sitecustomize`, found by PYTHONPATH, lets
simplejpeg do what a JPEG's comment says.
"""

import io
import os
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from crackvae import storage
from crackvae.config import ImageConfig
from crackvae.dataset import decoder, decoder_process, manifest, tiles
from crackvae.dataset.decoder import Decoder
from crackvae.dataset.reader import Reader
from crackvae.dataset.tiles import describe, hash_content, pixels, read_image
from crackvae.errors import CrackvaeError, ImageError
from crackvae.images import synthetic

IMAGE = ImageConfig(tile_size=32, max_seconds=1)
FILES = 12  # more than are answered together

BUG = """
import ctypes, itertools, os, sys, time
from pathlib import Path

if "crackvae.dataset.decoder_process" in sys.orig_argv:
    import simplejpeg

    genuine = simplejpeg.decode_jpeg

    def decode_jpeg(data, **options):
        if b"bug: segfault" in data:
            ctypes.string_at(0)
        if b"bug: kill" in data:  # as the kernel does where memory ends
            os.kill(os.getpid(), 9)
        if b"bug: exit" in data:
            os._exit(3)
        if b"bug: memory" in data:
            bytearray(2**50)
        if b"bug: loop" in data:
            Path(__file__).with_name("stuck").write_text(str(os.getpid()))
            all(itertools.repeat(1))  # in C, for ever, and no other thread runs
        if b"bug: sleep" in data:
            time.sleep(1000)
        if b"bug: once" in data and not os.path.exists("once"):
            Path("once").touch()
            ctypes.string_at(0)
        return genuine(data, **options)

    simplejpeg.decode_jpeg = decode_jpeg

    from crackvae.dataset.reader import Reader

    read = Reader.read

    def busy_read(self, uri, max_bytes):
        end = time.process_time() + 2.5 * ("busy" in uri)
        while time.process_time() < end:
            pass
        return read(self, uri, max_bytes)

    Reader.read = busy_read

    from crackvae.dataset import reader

    open_local = reader._open_local

    def hanging_open(path):  # as of a network share that is away
        time.sleep(1000 * ("hangs" in path))
        return open_local(path)

    reader._open_local = hanging_open
"""


@pytest.fixture
def bug(tmp_path, monkeypatch):
    """Gives children their bug; the folder that it is in."""
    folder = tmp_path / "bug"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(BUG)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return folder


@pytest.fixture
def survey(tmp_path):
    folder = tmp_path / "images"
    synthetic.write_survey(folder, normals=FILES, cracks=0, size=64)
    return manifest.build([str(folder)])[0]


def path_of(survey, row):
    return storage.local_path(survey["uri"][row].as_py())


def spoil(survey, row, bug):
    path = path_of(survey, row)
    with Image.open(path) as image:
        image.load()
    image.save(path, "JPEG", comment=f"bug: {bug}")


def unlisted(survey):
    """Without sizes, which a spoilt file no longer has."""
    return survey.select(["image_id", "uri"])


def undisturbed(survey):
    with Reader() as reader:
        decoded = [read_image(reader, IMAGE, uri) for uri in survey["uri"].to_pylist()]
    return [(pixels(image, IMAGE)[0], describe(image)["darkness"]) for image in decoded]


def statuses(part):
    return dict(zip(part["status"].to_pylist(), part["message"].to_pylist(), strict=True))


@pytest.fixture
def starts(monkeypatch):
    """The children that were started."""
    children = []
    start = decoder._start

    def recorded(image):
        children.append(start(image))
        return children[-1]

    monkeypatch.setattr(decoder, "_start", recorded)
    return children


def gone(pid):
    """Whether a process has ended: its parent, by then init, may not have asked for it yet."""
    for _ in range(100):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


def test_tiles_and_rows_are_those_of_this_process(survey, starts):
    expected = undisturbed(survey)
    with Decoder(IMAGE) as child:
        tiles_NSS, part = child.read(survey)
        again_NSS, again = child.read(survey)
    assert np.array_equal(tiles_NSS, [tile for tile, _ in expected])
    assert part["darkness"].to_pylist() == [darkness for _, darkness in expected]
    assert part["image_id"].to_pylist() == survey["image_id"].to_pylist()
    assert set(part["status"].to_pylist()) == {"ok"}
    assert part["message"].null_count == FILES
    assert np.array_equal(again_NSS, tiles_NSS)
    assert again.equals(part)
    assert len(starts) == 1
    assert gone(starts[0].process.pid)


def test_without_image_ids_the_uri_is_the_id_and_no_file_starts_no_child(survey, starts):
    with Decoder(IMAGE) as child:
        tiles_NSS, part = child.read(survey.select(["uri"]).slice(0, 0))
        assert (tiles_NSS.shape, part.num_rows, starts) == ((0, 32, 32), 0, [])
        part = child.read(survey.select(["uri"]).slice(0, 2))[1]
    assert part["image_id"].to_pylist() == survey["uri"].to_pylist()[:2]


@pytest.mark.parametrize("guilty", [{0, 1}, {2, 3, FILES - 1}])
def test_the_guilty_files_are_marked_and_their_neighbours_are_as_undisturbed(survey, bug, starts, guilty):
    expected_NSS = np.stack([tile for tile, _ in undisturbed(survey)])
    for row in guilty:
        spoil(survey, row, "segfault")
        expected_NSS[row] = 0
    with Decoder(IMAGE) as child:
        tiles_NSS, part = child.read(unlisted(survey))
    for row, found in enumerate(part.to_pylist()):
        assert found["status"] == ("crashed" if row in guilty else "ok")
        assert found["message"] == ("the decoder was ended by SIGSEGV" if row in guilty else None)
    assert np.array_equal(tiles_NSS, expected_NSS)
    assert part["image_id"].to_pylist() == survey["image_id"].to_pylist()
    assert len(starts) == 2 * len(guilty) + (FILES - 1 not in guilty)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("kill", "the decoder was ended by SIGKILL"),
        ("exit", "the decoder ended with exit code 3"),
        ("loop", "took over 1 s"),
        ("sleep", "took over 1 s"),
        ("memory", "needs more than 10.8 GB of memory"),
    ],
)
def test_a_message_says_how_a_file_ended_its_decoder(survey, bug, starts, what, message):
    spoil(survey, 3, what)
    with Decoder(IMAGE) as child:
        _, part = child.read(unlisted(survey))
    assert statuses(part) == {"ok": None, "crashed": message}
    assert part["status"][3].as_py() == "crashed"


def test_an_error_that_nobody_foresaw_crashes_the_file_only(survey, monkeypatch):
    monkeypatch.setattr(tiles, "decode", lambda data, **limits: {}["of a library"])
    with Reader() as reader:
        answer = decoder_process._answer((survey["uri"][0].as_py(), None, None), reader, IMAGE, 0)
    with pytest.raises(ImageError, match="crashed: KeyError: 'of a library'"):
        decoder._checked(answer, IMAGE)


def test_a_crash_that_does_not_come_again_leaves_no_trace(survey, bug, starts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spoil(survey, 3, "once")
    with Decoder(IMAGE) as child:
        _, part = child.read(unlisted(survey))
    assert statuses(part) == {"ok": None}
    assert len(starts) == 2


def test_a_real_jpeg_that_takes_long_is_ended(survey, tmp_path):
    """Each scan of a progressive JPEG is another pass over all pixels: 80 take 11 s."""
    stream = io.BytesIO()
    Image.new("L", (8000, 8000), 128).save(stream, "JPEG", progressive=True)
    data = stream.getvalue()
    scan = data[data.rindex(b"\xff\xda") : -2]
    path_of(survey, 3).write_bytes(data[:-2] + 80 * scan + data[-2:])
    with Decoder(IMAGE) as child:
        _, part = child.read(unlisted(survey))
    assert statuses(part) == {"ok": None, "crashed": "took over 1 s"}


def test_a_real_image_that_needs_more_memory_than_there_is(survey, tmp_path):
    Image.new("RGB", (12000, 8000)).save(path_of(survey, 3).with_suffix(".png"), compress_level=1)
    path_of(survey, 3).with_suffix(".png").rename(path_of(survey, 3))
    code = """if True:
        import resource, sys
        import pyarrow as pa
        from crackvae.config import ImageConfig
        from crackvae.dataset.decoder import Decoder

        resource.setrlimit(resource.RLIMIT_AS, (10**9, resource.RLIM_INFINITY))  # what the child inherits
        with Decoder(ImageConfig(max_megabytes=10)) as child:
            part = child.read(pa.table({"uri": sys.argv[1:]}))[1]
        print(part["status"].to_pylist(), part["message"].to_pylist())
    """
    uris = survey["uri"].to_pylist()[2:5]
    ran = subprocess.run([sys.executable, "-c", code, *uris], capture_output=True, text=True, check=True)
    assert ran.stdout == "['ok', 'crashed', 'ok'] [None, 'needs more than 1.0 GB of memory', None]\n"


def test_a_read_that_stalls_is_unreadable(survey, monkeypatch):
    monkeypatch.setattr(decoder, "_GRACE_SECONDS", 0.2)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        query = f"region=us-east-1&scheme=http&endpoint_override=127.0.0.1:{silent.getsockname()[1]}"
        uris = survey["uri"].to_pylist()
        uris[3] = f"s3://bucket/a.jpg?{query}"
        with Decoder(IMAGE) as child:
            _, part = child.read(pa.table({"uri": uris}))
    assert statuses(part) == {"ok": None, "unreadable": "no answer in 1 s"}
    assert part["status"][3].as_py() == "unreadable"


def test_a_read_that_is_at_work_may_take_longer(survey, bug, starts, monkeypatch):
    monkeypatch.setattr(decoder, "_GRACE_SECONDS", 0.2)
    busy = path_of(survey, 3).rename(path_of(survey, 3).with_name("busy.jpg"))
    with Decoder(IMAGE) as child:
        _, part = child.read(pa.table({"uri": [storage.to_uri(str(busy)), survey["uri"][4].as_py()]}))
    assert part["status"].to_pylist() == ["ok", "ok"]
    assert len(starts) == 1


def test_a_child_that_was_killed_while_idle_is_replaced(survey, starts):
    with Decoder(IMAGE) as child:
        child.read(survey)
        os.kill(starts[0].process.pid, signal.SIGKILL)
        time.sleep(0.2)
        _, part = child.read(survey)
    assert statuses(part) == {"ok": None}
    assert len(starts) == 2


@pytest.mark.parametrize(("program", "code"), [("/bin/true", 0), ("/bin/false", 1)])
def test_a_child_that_does_not_start_is_no_fault_of_a_file(survey, monkeypatch, program, code):
    monkeypatch.setattr(sys, "executable", program)
    with Decoder(IMAGE) as child, pytest.raises(CrackvaeError, match=f"does not start: .* exit code {code};"):
        child.read(survey)


@pytest.mark.parametrize(
    "answer",
    [
        b"\x80\x04\x95\x1d\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94\x8c\x05false\x94\x85\x94R\x94.",
        b"",
        b"[" * 60_000,
        b'{"status": "fine"}',
        b'{"status": "ok", "darkness": 1, "width": 9, "height": 9}\n' + bytes(32 * 32 - 1),
        b'{"status": "ok", "darkness": null, "width": 9, "height": 9}\n' + bytes(32 * 32),
        b'{"status": "ok", "width": 9, "height": 9, "darkness": 1' + b"0" * 4000 + b"}\n" + bytes(32 * 32),
        b'{"status": "undecodable", "message": 1}',
        bytes(10**6),
    ],
)
def test_answers_of_a_child_that_was_taken_over_are_not_believed(survey, tmp_path, monkeypatch, answer):
    program = tmp_path / "child"
    program.write_text(
        f"#!{sys.executable}\n"
        "import socket, sys\n"
        "channel = socket.socket(fileno=int(sys.argv[-2]))\n"
        "channel.recv(10**6)\n"
        "channel.sendall((5).to_bytes(4, 'big') + b'ready')\n"
        "channel.recv(10**6)\n"
        f"answer = {answer!r}\n"
        "channel.sendall(len(answer).to_bytes(4, 'big') + answer)\n"
        "channel.recv(10**6)\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    with Decoder(IMAGE) as child:
        tiles_NSS, part = child.read(survey.slice(0, 1))
    assert statuses(part) == {"crashed": "the decoder's answer makes no sense"}
    assert not tiles_NSS.any()


@pytest.mark.parametrize("kind", [pa.float32(), pa.float64(), pa.int32(), pa.int8(), pa.string()])
@pytest.mark.parametrize("value", [0.1, -3.0, 1e300, 227, 2**31 - 1, 2**31, -(2**31) - 1, True, "1.5", [1]])
def test_a_value_is_what_its_column_will_hold_or_is_refused(value, kind):
    try:
        expected = pa.scalar(value, kind).as_py()
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        with pytest.raises((pa.ArrowException, TypeError, ValueError, OverflowError)):
            decoder._as_written(value, kind)
        return
    found = decoder._as_written(value, kind)
    assert (found, type(found)) == (expected, type(expected))


def test_text_that_is_no_unicode_is_kept_readable(survey):
    row, tile = decoder._checked(rb'{"status": "undecodable", "message": "a\udc80"}', IMAGE)
    assert (row["message"], tile) == ("a\\udc80", [])


PARENT = """if True:
    import sys
    import pyarrow as pa
    from crackvae.config import ImageConfig
    from crackvae.dataset.decoder import Decoder

    child, files = Decoder(ImageConfig(tile_size=32)), pa.table({"uri": sys.argv[1:]})
    try:
        child.read(files)
    except KeyboardInterrupt:
        print(child.read(files.slice(1))[1]["image_id"].to_pylist() == sys.argv[2:])
"""


@pytest.fixture
def parent_of_a_stuck_child(survey, bug):
    """A process that waits for a stuck child, and the child's id."""
    spoil(survey, 0, "loop")
    arguments = [sys.executable, "-c", PARENT, *survey["uri"].to_pylist()]
    with subprocess.Popen(arguments, start_new_session=True, stdout=subprocess.PIPE, text=True) as process:
        try:
            stuck = bug / "stuck"
            while not (stuck.exists() and stuck.read_text()):
                assert process.poll() is None
                time.sleep(0.05)
            yield process, int(stuck.read_text())
        finally:
            process.kill()


def test_a_stuck_child_ends_with_its_parent(parent_of_a_stuck_child):
    process, child = parent_of_a_stuck_child
    assert Path(f"/proc/{child}").exists()
    process.kill()
    process.wait()
    assert gone(child)


def test_an_interrupted_list_does_not_answer_the_next_one(parent_of_a_stuck_child):
    process, child = parent_of_a_stuck_child
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate(timeout=30)[0] == "True\n"
    assert gone(child)


def test_a_child_whose_parent_died_at_once_ends():
    (channel, theirs), (lifeline, held) = socket.socketpair(), socket.socketpair()
    with channel, theirs, held:
        lifeline.close()
        fds = [theirs.fileno(), held.fileno()]
        arguments = ["-m", "crackvae.dataset.decoder_process", *map(str, fds)]
        ran = subprocess.run([sys.executable, *arguments], pass_fds=fds, timeout=60, check=False)
    assert ran.returncode == 0


def test_a_child_outlives_the_thread_that_started_it(survey, starts):
    with Decoder(IMAGE) as child:
        for _ in range(2):
            thread = threading.Thread(target=child.read, args=(survey,))
            thread.start()
            thread.join()
            time.sleep(0.1)
        assert starts[0].process.poll() is None
    assert len(starts) == 1


def test_modules_beside_the_images_are_not_imported(survey, tmp_path, monkeypatch):
    (tmp_path / "numpy.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)
    with Decoder(IMAGE) as child:
        assert statuses(child.read(survey)[1]) == {"ok": None}


def test_a_file_that_cannot_even_be_opened_holds_up_no_other(survey, bug, monkeypatch):
    monkeypatch.setattr(decoder, "_GRACE_SECONDS", 0.5)
    path = path_of(survey, 5)
    path = path.rename(path.with_name("hangs.jpg"))
    uris = [storage.to_uri(str(path)) if row == 5 else uri for row, uri in enumerate(survey["uri"].to_pylist())]
    with Decoder(IMAGE) as child:
        found = child.read(pa.table({"uri": uris}))[1].to_pylist()
    assert [row["message"] for row in found] == [None] * 5 + ["no answer in 1 s"] + [None] * (FILES - 6)


def test_files_that_changed_since_they_were_listed_are_unreadable(survey):
    content_hash = [hash_content(path_of(survey, row).read_bytes()) for row in range(FILES)]
    column = survey.schema.get_field_index("content_hash")
    survey = survey.set_column(column, "content_hash", pa.array([*content_hash[:5], None, *content_hash[6:]]))
    size = survey["size"].to_pylist()
    for row in (3, 4, 5):  # the last one has no hash to tell
        data = bytearray(path_of(survey, row).read_bytes())
        data[-3] ^= 1
        path_of(survey, row).write_bytes(data + b"\0" * (row == 3))
    with Decoder(IMAGE) as child:
        found = child.read(survey)[1].to_pylist()
    message = f"changed since it was listed: {size[3] + 1:,} bytes, was {size[3]:,}"
    assert (found[3]["status"], found[3]["message"]) == ("unreadable", message)
    assert (found[4]["status"], found[4]["message"]) == ("unreadable", "changed since it was listed: other content")
    assert all(row["status"] == "ok" for row in found[:3] + found[5:])


def test_a_link_in_a_tar_is_listed_as_empty_and_read_all_the_same(survey, tmp_path):
    location = tmp_path / "images.tar"
    with tarfile.open(location, "w") as tar:
        tar.add(path_of(survey, 0), "normal/a.jpg")
        link = tarfile.TarInfo("normal/b.jpg")
        link.type, link.linkname = tarfile.LNKTYPE, "normal/a.jpg"
        tar.addfile(link)
    with Decoder(IMAGE) as child:
        tiles_NSS, part = child.read(manifest.build([str(location)])[0])
    assert statuses(part) == {"ok": None}
    assert np.array_equal(tiles_NSS[0], tiles_NSS[1])


def test_nothing_is_unpickled():
    for module in ("decoder.py", "decoder_process.py"):
        source = Path(decoder.__file__).with_name(module).read_text()
        assert not any(word in source for word in ("import pickle", "pickle.", "multiprocessing", "eval(", "exec("))
