"""What is changed in Unicorn's translator: without it, few bytes of a guest's code end the process."""

from __future__ import annotations

import subprocess
import sys

import pytest

from hypervisor.arch.x86_64.cpu import proof, translation
from hypervisor.arch.x86_64.cpu.support import UnsupportedUnicorn

DEADLY = {
    "mov rax, cr0": "0f20c0",
    "mov fs, eax": "8ee0",
    "fxam": "d9e5",
    "fldenv": "d92425001c0000",
    "palignr": "0f3a0fc005",
    "pcmpistri": "660f3a63c005",
    "lock bts eax, eax": "f00fabc0",
    "lock bt eax, 5": "f00fbae005",
}
RUN = """
import sys
from hypervisor.arch.x86_64.cpu import vcpu
from hypervisor.arch.x86_64.cpu.proof import CODE, machine
engine, _ = machine(sys.argv[1] * 700 + "f4")
try:
    engine.emu_start(CODE, 0)
except Exception as error:
    print(error)
print("alive")
"""


def run(text: str, program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program, text], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("text", DEADLY.values(), ids=DEADLY.keys())
def test_no_row_of_instructions_ends_the_process(text: str) -> None:
    done = run(text, RUN)
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["alive"]), done.stderr


@pytest.mark.parametrize("text", ["mov rax, cr0", "lock bts eax, eax"])
def test_the_changes_are_what_keeps_it_alive(text: str) -> None:
    """The same with Unicorn as it is: if this lives, a newer Unicorn needs the change no more."""
    program = "from hypervisor.arch.x86_64.cpu import translation; translation.mend = lambda: None\n"
    done = run(DEADLY[text], program + RUN)
    assert done.returncode < 0


def test_a_limit_that_is_not_obeyed_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another build, whose constant lies elsewhere, is refused."""
    monkeypatch.setattr(translation, "INSTRUCTIONS", 77)
    with pytest.raises(UnsupportedUnicorn, match="is not where it was"):
        proof.self_check()


def test_the_changes_are_made_once() -> None:
    """A second time finds them made."""
    translation.mend()
    assert translation._longest() == translation.INSTRUCTIONS
    assert translation._ignores_lock()
