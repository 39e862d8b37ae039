"""The limit of translated blocks: without it, 464 of some instructions in a row end the process."""

from __future__ import annotations

import subprocess
import sys

import pytest

from hypervisor.cpu import overlay, translation

LEAKING = {
    "mov rax, cr0": "0f20c0",
    "mov fs, eax": "8ee0",
    "fxam": "d9e5",
    "fldenv": "d92425001c0000",
    "palignr": "0f3a0fc005",
    "pcmpistri": "660f3a63c005",
}
RUN = """
import sys
from hypervisor.cpu.overlay import {how}
engine, _ = _machine(sys.argv[1] * 700 + "f4")
try:
    engine.emu_start(_CODE, 0)
except Exception as error:
    print(error)
print("alive")
"""


def run(text: str, program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program, text], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("text", LEAKING.values(), ids=LEAKING.keys())
def test_no_row_of_instructions_ends_the_process(text: str) -> None:
    done = run(text, RUN.format(how="_CODE, _machine"))
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["alive"]), done.stderr


def test_the_limit_is_what_keeps_it_alive() -> None:
    """The same with the limit as Unicorn has it: if this lives, a newer Unicorn needs no limit any more."""
    program = "from hypervisor.cpu import translation; translation.limit_blocks = lambda: None\n"
    done = run(LEAKING["mov rax, cr0"], program + RUN.format(how="_CODE, _machine"))
    assert done.returncode < 0


def test_a_limit_that_is_not_obeyed_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another build, whose constant lies elsewhere, is refused."""
    monkeypatch.setattr(translation, "INSTRUCTIONS", 77)
    with pytest.raises(overlay.UnsupportedUnicorn, match="limit for blocks is not where it was"):
        overlay.self_check()


def test_the_limit_may_be_set_again() -> None:
    translation.limit_blocks()
    assert translation._longest() == translation.INSTRUCTIONS
