"""The log's lines, its writer and its files."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.logger import Logger, LogPublisher
from twisted.python.failure import Failure

from tests.conftest import NOW
from xapi.datamodel import quoting
from xapi.log import lines, output
from xapi.log.files import RotatedFile
from xapi.log.lines import DEBUG, ERROR, INFO, LEVELS, WARN, Said
from xapi.log.output import Log
from xapi.log.writer import QUEUED

SESSION = "OpaqueRef:01234567-89ab-cdef-0123-456789abcdef"


class Kept:
    """A sink in memory, which may be full, or held back."""

    def __init__(self) -> None:
        self.text = b""
        self.full = False
        self.free = threading.Event()
        self.free.set()

    def write(self, data: bytes) -> None:
        self.free.wait()
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.text += data

    def close(self) -> None: ...


def logged(sink: Kept, level: str = "info", form: str = "text") -> Log:
    return Log(level, form, sink, NOW.timestamp)


def said(*values: Any) -> Said:
    return " ".join(map(str, values)), {}


@pytest.fixture
def sink() -> Kept:
    return Kept()


@pytest.fixture
def log(sink: Kept) -> Iterator[Log]:
    log = logged(sink)
    yield log
    sink.free.set()
    log.close()


def put(log: Log, *values: Any, level: int = INFO) -> None:
    log.put(NOW.timestamp(), level, "xapi.test", said, values)


def written(log: Log, sink: Kept) -> list[str]:
    """Return the lines, when all of them are written."""
    assert log.writer.flush(10)
    return sink.text.decode().splitlines()


# Lines


def test_a_line_has_its_moment_and_level(log: Log, sink: Kept) -> None:
    """ISO 8601, UTC, milliseconds: what everything that reads logs understands."""
    log.put(NOW.timestamp() + 0.0625, WARN, "xapi.test", said, ("it", "is", "late"))
    assert written(log, sink) == ["2026-01-31T09:05:07.062Z warn     it is late"]


def test_levels_below_the_chosen_one_are_not_written(log: Log, sink: Kept) -> None:
    """At info, debug is nothing."""
    put(log, "no", level=DEBUG)
    put(log, "yes")
    assert [line.split()[-1] for line in written(log, sink)] == ["yes"]


def test_a_json_line_has_the_fields() -> None:
    """One object a line, with what a text line says as its message."""
    line = (NOW.timestamp(), INFO, "xapi.test", lambda: ("guest runs", {"domid": 5, "big": 1 << 80}), ())
    assert json.loads(lines.json(line)) == {
        "time": "2026-01-31T09:05:07.000Z", "level": "info", "logger": "xapi.test", "message": "guest runs",
        "domid": "5", "big": str(1 << 80),
    }  # fmt: skip


@pytest.mark.parametrize("form", ["text", "json"])
@given(value=st.text())
def test_no_text_begins_a_line_or_reaches_the_terminal(form: str, value: str) -> None:
    """Names, errors and headers are others': they are shown, not obeyed."""
    whole = lines.FORMAT[form]((NOW.timestamp(), INFO, "xapi.test", said, ("name", quoting.quoted(value))))
    shown = whole.decode()
    assert shown.endswith("\n")
    assert not re.search("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]", shown[:-1])


@given(value=st.text())
def test_further_lines_cannot_pass_for_lines(value: str) -> None:
    """A traceback may hold what a client sent: each of its lines is set off."""
    whole = lines.text((NOW.timestamp(), INFO, "xapi.test", said, ("failed\n" + value,)))
    assert all(line.startswith("  | ") for line in whole.decode().split("\n")[1:-1])


@given(value=st.text())
def test_a_json_line_keeps_a_text_as_it_was(value: str) -> None:
    """Escaping is JSON's own, so a reader gets back what was sent."""
    line = lines.json((NOW.timestamp(), INFO, "xapi.test", lambda text: ("said", {"text": text}), (value,)))
    read = json.loads(line)["text"]
    assert read == value or value.encode("utf-8", "replace") != value.encode("utf-8", "surrogatepass")


def test_a_huge_value_is_cut() -> None:
    """The rest of it is a number."""
    assert quoting.quoted("x" * 1_000_200) == '"' + "x" * 200 + '... (1,000,000 more)"'


# What Twisted, the hypervisor and libraries say


def publisher(log: Log) -> LogPublisher:
    made = LogPublisher()
    made.addObserver(log)
    return made


def test_what_modules_say_is_written(log: Log, sink: Kept) -> None:
    """The logger of all our modules is twisted.logger's."""
    Logger("xapi.vms", observer=publisher(log)).info("{vm} stays", vm="web")
    assert written(log, sink)[0].endswith(" info     web stays")


def test_a_failure_is_an_error_with_its_traceback(log: Log, sink: Kept) -> None:
    """Not critical: the daemon goes on."""
    try:
        raise ValueError("three\nlines")
    except ValueError:
        Logger("xapi.vms", observer=publisher(log)).failure("looking failed")
    first, *more = written(log, sink)
    assert first.split(" ", 1)[1] == "error    looking failed"
    assert more[-2:] == ["  | builtins.ValueError: three", "  | lines"]


def test_the_information_of_twisted_is_noise(log: Log, sink: Kept) -> None:
    """Factories that start and ports that close are its own affair; warnings are not."""
    noise = Logger("twisted.internet.tcp", observer=publisher(log))
    noise.info("Starting factory")
    noise.warn("it is hot")
    assert [line.split(None, 2)[2] for line in written(log, sink)] == ["it is hot"]


def test_the_hypervisor_s_logging_is_written(log: Log, sink: Kept) -> None:
    """It knows no Twisted: the standard library's records are taken over, with their errors."""
    logger = logging.Logger("hypervisor.host")
    logger.addHandler(output._Bridge(log))
    logger.info("domain %d begins", 5)
    try:
        raise KeyError("frame")
    except KeyError:
        logger.exception("domain %d is crashed", 5)
    shown = written(log, sink)
    assert [line.split(" ", 1)[1] for line in shown[:2]] == ["info     domain 5 begins", "error    domain 5 is crashed"]
    assert "KeyError: 'frame'" in shown[-1]


def test_the_information_of_libraries_is_noise(log: Log, sink: Kept) -> None:
    """Alembic tells at info which dialect it has found."""
    log.record(logging.LogRecord("alembic", logging.INFO, "", 0, "Context impl SQLiteImpl.", None, None))
    assert written(log, sink) == []


def test_a_reference_is_never_written(log: Log, sink: Kept) -> None:
    """A session's is as good as a password, and whoever says something may not know whose it is."""
    logger = Logger("xapi.vms", observer=publisher(log))
    logger.warn("{ref} is gone", ref=SESSION)
    logger.failure("it failed", Failure(KeyError(SESSION)))
    shown = "\n".join(written(log, sink))
    assert SESSION not in shown
    assert shown.count(quoting.trackid(SESSION)) == 2


# The writer


def test_lines_keep_their_order(log: Log, sink: Kept) -> None:
    """From one thread, as they came."""
    for number in range(1000):
        put(log, number)
    assert [int(line.split()[-1]) for line in written(log, sink)] == list(range(1000))


def test_more_than_can_be_written_is_counted(log: Log, sink: Kept) -> None:
    """A reader that does not read stops nobody: the queue has an end, and the log says how much is missing."""
    sink.free.clear()
    put(log, "held", level=ERROR)
    for number in range(QUEUED + 500):
        put(log, number)
    sink.free.set()
    shown = written(log, sink)
    lost = next(line for line in shown if "are missing here" in line)
    assert len(shown) - 1 + int(re.findall(r"[\d,]+ lines", lost)[0].split()[0].replace(",", "")) == QUEUED + 501


def test_a_full_disk_is_survived_and_told_of(log: Log, sink: Kept) -> None:
    """The daemon goes on; when there is room again, the log says what it lacks and why."""
    sink.full = True
    put(log, "one")
    put(log, "two")
    assert log.writer.flush(10)
    sink.full = False
    put(log, "three")
    shown = [line.split(None, 2)[2] for line in written(log, sink)]
    assert shown == ["three", "2 lines of the log could not be written: No space left on device"]


def test_what_cannot_be_formatted_harms_no_other_line(log: Log, sink: Kept) -> None:
    """A mistake in a sentence is told of, and the thread lives on."""
    log.put(NOW.timestamp(), INFO, "xapi.test", lambda: ("{}" + 1, {}), ())  # type: ignore[operator]
    put(log, "fine")
    shown = written(log, sink)
    assert shown[0].endswith("fine")
    assert "1 lines of the log could not be written: TypeError" in shown[1]


def test_the_end_waits_for_what_is_queued(sink: Kept) -> None:
    """What was said last is what one wants to know."""
    log = logged(sink)
    put(log, "last words")
    log.close()
    assert sink.text.endswith(b"last words\n")


# Files


def file_of(path: Path, **more: Any) -> RotatedFile:
    return RotatedFile(path, **more)


def test_a_full_file_is_rotated_and_the_oldest_goes(tmp_path: Path) -> None:
    """FILE.1 is the newest of the old ones."""
    file = file_of(tmp_path / "log", size=10, kept=2)
    for text in (b"first...\n", b"second..\n", b"third...\n", b"fourth..\n"):
        file.write(text)
    file.close()
    assert {path.name: path.read_text().strip(".\n") for path in tmp_path.iterdir()} == {
        "log": "fourth", "log.1": "third", "log.2": "second",
    }  # fmt: skip


def test_a_log_file_is_its_owner_s_alone(tmp_path: Path) -> None:
    """It tells who did what."""
    file_of(tmp_path / "log").close()
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("moved", [True, False], ids=["moved", "deleted"])
def test_a_file_that_somebody_takes_away_is_made_anew(tmp_path: Path, moved: bool) -> None:
    """logrotate needs no signal."""
    path = tmp_path / "log"
    file = file_of(path)
    file.write(b"before\n")
    path.rename(tmp_path / "old") if moved else path.unlink()
    file.write(b"after\n")
    file.close()
    assert path.read_bytes() == b"after\n"


def test_a_line_that_was_cut_by_a_full_disk_does_not_spoil_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What came through of it ends where the next begins."""
    path = tmp_path / "log"
    file = file_of(path)
    whole = os.write

    def half(number: int, data: Any) -> int:
        if path.stat().st_size:
            raise OSError(errno.ENOSPC, "full")
        return whole(number, data[:3])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", half)
        with pytest.raises(OSError, match="full"):
            file.write(b"cut off\n")
    file.write(b"whole\n")
    file.close()
    assert path.read_bytes() == b"cut\nwhole\n"


# A process


def run(tmp_path: Path, *program: str) -> tuple[int, str]:
    """Run a program that logs into a file; return its exit code and the log."""
    begin = f"output.start('info', 'text', Path({str(tmp_path / 'log')!r}))"
    imports = ("from pathlib import Path", "from xapi.log import output", "from twisted.logger import Logger")
    text = "\n".join([*imports, begin, "log = Logger('xapi.test')", *program])
    ended = subprocess.run([sys.executable, "-c", text], capture_output=True, timeout=60)
    return ended.returncode, (tmp_path / "log").read_text()


def test_what_ends_the_process_is_in_the_log(tmp_path: Path) -> None:
    """Said before, and the error itself."""
    code, text = run(tmp_path, "log.info('at work')", "raise LookupError('no more')")
    assert code == 1
    assert re.search(r"info     at work\n.*critical the process ends\n(  \| .*\n)+.*LookupError: no more\n$", text)


def test_a_fatal_signal_is_in_the_log(tmp_path: Path) -> None:
    """Python tells where it was; nothing else can be said then."""
    program = ["import os, signal", "log.error('before')", "output.current().writer.flush()"]
    code, text = run(tmp_path, *program, "os.kill(os.getpid(), signal.SIGSEGV)")
    assert code == -signal.SIGSEGV
    assert "error    before\n" in text
    assert "Fatal Python error: Segmentation fault" in text


def test_a_thread_s_death_is_in_the_log(tmp_path: Path) -> None:
    """Nobody waits for most threads."""
    _, text = run(tmp_path, "import threading", "t = threading.Thread(target=lambda: 1 / 0, name='pcpu0')",
                  "t.start()", "t.join()")  # fmt: skip
    assert "error    thread pcpu0 has ended\n" in text
    assert "ZeroDivisionError" in text


def test_a_daemon_that_forks_goes_on_logging(tmp_path: Path) -> None:
    """twistd does, after it has begun the log; a line stands there once."""
    _, text = run(tmp_path, "import os", "log.info('parent')", "child = os.fork()",
                  "if child: os.waitpid(child, 0)", "else: log.info('child')")  # fmt: skip
    assert sorted(line.split()[-1] for line in text.splitlines()) == ["child", "parent"]


def test_every_level_of_the_option_is_one_of_the_log() -> None:
    """The two lists are in two modules, since options are read before anything else is imported."""
    from xapi.process.config import LOG_FORMATS, LOG_LEVELS

    assert (tuple(LEVELS), tuple(lines.FORMAT)) == (LOG_LEVELS, LOG_FORMATS)
