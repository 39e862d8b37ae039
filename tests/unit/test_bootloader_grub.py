"""GRUB 2 scripts: the language, the commands that matter, and configurations as distributions make them."""

from __future__ import annotations

import pytest

from hypervisor.bootloader import grub
from hypervisor.bootloader.errors import BootError
from hypervisor.bootloader.grub_test import holds, newest_first
from hypervisor.bootloader.menu import Entry, Menu
from hypervisor.bootloader.tree import Kind
from tests.unit.bootloader_images import places

ROOT = "0fc63daf-8483-4772-8e79-3d69d8477de4"
KERNELS = {"/boot/vmlinuz-6.1": "k1", "/boot/initrd.img-6.1": "i1", "/boot/vmlinuz-5.10": "k2", "/k": "k"}


def menu(script: str, files: dict[str, str] | None = None, *others: dict[str, str], uuid: str = ROOT) -> Menu:
    """Return the menu of a script at /boot/grub/grub.cfg of hd0."""
    system = KERNELS | {"/boot/grub/grub.cfg": script} | (files or {})
    found = places(system, *others, names=((uuid, "root"), ("AAAA-BBBB", "EFI")))
    return grub.read(found, found.named("hd0"), "/boot/grub/grub.cfg")


def entry(script: str, files: dict[str, str] | None = None, *others: dict[str, str]) -> Entry:
    return menu(script, files, *others).default()


def line(script: str, files: dict[str, str] | None = None) -> str:
    """Return the command line of what a script starts, without its BOOT_IMAGE."""
    return entry(script, files).command_line.partition(" ")[2]


DEBIAN = f"""
if [ -s $prefix/grubenv ]; then
  set have_grubenv=true
  load_env
fi
if [ "${{next_entry}}" ] ; then
   set default="${{next_entry}}"
   set next_entry=
   save_env next_entry
   set boot_once=true
else
   set default="${{saved_entry}}"
fi
if [ x"${{feature_menuentry_id}}" = xy ]; then
  menuentry_id_option="--id"
else
  menuentry_id_option=""
fi
export menuentry_id_option
function load_video {{
  if [ x$feature_all_video_module = xy ]; then
    insmod all_video
  else
    insmod vga
  fi
}}
if keystatus --shift; then set timeout=-1; else set timeout=5; fi
menuentry 'Debian GNU/Linux' --class debian --class os $menuentry_id_option 'simple' {{
    load_video
    insmod part_gpt
    set root='hd7,gpt1'
    if [ x$feature_platform_search_hint = xy ]; then
      search --no-floppy --fs-uuid --set=root --hint-bios=hd0,gpt1 --hint='hd0,gpt1'  {ROOT}
    else
      search --no-floppy --fs-uuid --set=root {ROOT}
    fi
    echo    'Loading Linux 6.1 ...'
    linux    /boot/vmlinuz-6.1 root=UUID={ROOT} ro  quiet
    initrd    /boot/initrd.img-6.1
}}
submenu 'Advanced options for Debian GNU/Linux' $menuentry_id_option 'advanced' {{
    menuentry 'Debian GNU/Linux, with Linux 6.1' --class debian $menuentry_id_option 'advanced-6.1' {{
        linux    /boot/vmlinuz-6.1 root=UUID={ROOT} ro
        initrd    /boot/initrd.img-6.1
    }}
    menuentry 'Debian GNU/Linux, with Linux 5.10' --class debian $menuentry_id_option 'advanced-5.10' {{
        linux    /boot/vmlinuz-5.10 root=UUID={ROOT} ro
    }}
}}
menuentry "System setup" $menuentry_id_option 'uefi-firmware' {{
    fwsetup
}}
"""


def environment(**values: str) -> dict[str, str]:
    lines = "".join(f"{name}={value}\n" for name, value in values.items())
    return {"/boot/grub/grubenv": ("# GRUB Environment Block\n" + lines).ljust(1024, "#")}


def test_what_debian_generates_starts_the_first_kernel() -> None:
    """Its kernel, initrd and command line, as GRUB hands them over."""
    found = entry(DEBIAN)
    assert (found.title, found.kernel.path) == ("Debian GNU/Linux", "/boot/vmlinuz-6.1")
    assert [file.path for file in found.initrds] == ["/boot/initrd.img-6.1"]
    assert found.command_line == f"BOOT_IMAGE=/boot/vmlinuz-6.1 root=UUID={ROOT} ro quiet"


@pytest.mark.parametrize("name", ["saved_entry", "next_entry"])
@pytest.mark.parametrize("selector", ["advanced>advanced-5.10", "1>1", "advanced>Debian GNU/Linux, with Linux 5.10"])
def test_the_entry_that_grub_reboot_or_grub_set_default_chose_is_started(name: str, selector: str) -> None:
    """By ids, numbers and titles, through the submenu."""
    assert entry(DEBIAN, environment(**{name: selector})).kernel.path == "/boot/vmlinuz-5.10"


@pytest.mark.parametrize("selector", ["", "nothing", "7", "1>9", "advanced>", "0>0"])
def test_a_default_that_does_not_exist_is_the_first_entry(selector: str) -> None:
    """As after a kernel was removed."""
    assert entry(DEBIAN, environment(saved_entry=selector)).kernel.path == "/boot/vmlinuz-6.1"


def test_a_submenu_as_default_starts_its_first_entry() -> None:
    assert entry(DEBIAN, environment(saved_entry="advanced")).title == "Debian GNU/Linux, with Linux 6.1"


def test_an_entry_without_a_kernel_says_so() -> None:
    with pytest.raises(BootError, match="'System setup' has no kernel"):
        menu(DEBIAN).select("uefi-firmware")


def test_the_efi_partition_leads_to_the_configuration_elsewhere() -> None:
    """What Debian's grub-install writes to EFI/debian/grub.cfg."""
    efi = f"search.fs_uuid {ROOT} root hd0,gpt2 \nset prefix=($root)'/boot/grub'\nconfigfile $prefix/grub.cfg\n"
    found = places(
        {"/EFI/debian/grub.cfg": efi},
        KERNELS | {"/boot/grub/grub.cfg": DEBIAN} | environment(saved_entry="1>1"),
        names=(("AAAA-BBBB", ""), (ROOT, "")),
    )
    started = grub.read(found, found.named("hd0"), "/EFI/debian/grub.cfg").default()
    assert (started.kernel.place.name, started.kernel.path) == ("hd1", "/boot/vmlinuz-5.10")


FEDORA = """
if [ -f ${config_directory}/grubenv ]; then
  load_env -f ${config_directory}/grubenv
elif [ -s $prefix/grubenv ]; then
  load_env
fi
if [ -n "$boot_indeterminate" -a "$boot_success" = "0" ]; then
  increment boot_indeterminate
fi
if [ "${next_entry}" ] ; then set default="${next_entry}"; else set default="${saved_entry}"; fi
search --no-floppy --fs-uuid --set=boot AAAA-BBBB
insmod blscfg
blscfg
"""


def loader_entry(version: str, **more: str) -> str:
    fields = {"title": f"Fedora ({version})", "version": version, "linux": f"/vmlinuz-{version}"}
    fields |= {"initrd": f"/initramfs-{version}.img $tuned_initrd", "options": "$kernelopts quiet"} | more
    return "".join(f"{key} {value}\n" for key, value in fields.items())


BOOT_PARTITION = {
    "/loader/entries/abc-6.9.7-1.fc40.conf": loader_entry("6.9.7-1.fc40"),
    "/loader/entries/abc-6.10.1-1.fc40.conf": loader_entry("6.10.1-1.fc40"),
    "/loader/entries/abc-0-rescue.conf": loader_entry("0-rescue"),
    "/loader/entries/README": "title none",
}


def test_what_fedora_generates_starts_the_newest_loader_entry() -> None:
    """On the boot partition, with the options that grubenv has."""
    found = entry(FEDORA, environment(kernelopts="root=/dev/xvda3 ro"), BOOT_PARTITION)
    assert (found.kernel.path, found.kernel.place.name) == ("/vmlinuz-6.10.1-1.fc40", "hd1")
    assert [file.path for file in found.initrds] == ["/initramfs-6.10.1-1.fc40.img"]
    assert found.command_line == "root=/dev/xvda3 ro quiet"


def test_fedora_s_saved_entry_is_a_loader_entry_s_name() -> None:
    found = entry(FEDORA, environment(saved_entry="abc-6.9.7-1.fc40"), BOOT_PARTITION)
    assert found.kernel.path == "/vmlinuz-6.9.7-1.fc40"


LANGUAGE = {
    "quotes": ("set a='x y'\nset b=\"$a\\\"z\"", '"$b" \'$a\' $a', '"x y\\"z" $a x y'),
    "an empty variable is no word": ("set a=", 'x $a "$a" y', "x  y"),
    "words joined": ("set a=1", "x${a}y'z'\"$a\"", "x1yz1"),
    "escapes": ("", "a\\ b \\$x", '"a b" $x'),
    "lines joined": ("set a=1\\\n2", "$a", "12"),
    "assignment without set": ("a=5", "$a", "5"),
    "unset": ("set a=5\nunset a", "x$a", "x"),
    "comments": ("set a=1 # set a=2\n# set a=3", "$a", "1"),
    "if": ("if [ 1 = 2 ]; then set a=1; elif true; then set a=2; else set a=3; fi", "$a", "2"),
    "else": ("if false; then set a=1\nelse\nset a=3\nfi", "$a", "3"),
    "not": ("if ! false; then set a=1; fi", "$a", "1"),
    "for": ("set a=\nfor i in x y z; do set a=$a$i; done", "$a", "xyz"),
    "while": ("set a=\nwhile [ x$a != xiii ]; do set a=${a}i; done", "$a", "iii"),
    "until": ("set a=\nuntil [ x$a = xii ]; do set a=${a}i; done", "$a", "ii"),
    "function": ("function f { set a=$1-$#\n return 1 \n set a=0 }\nif ! f x y; then set b=1; fi", "$a $b", "x-2 1"),
    "all arguments": ('function g { set a="$#$1"\n}\nfunction f { g "$@"\n}\nf "x y" z', '"$a"', '"2x y"'),
    "status": ("false\nset a=$?", "$a", "1"),
    "increment": ("set a=9\nincrement a", "$a", "10"),
    "probe": ("probe --set=a --fs-uuid ($root)", "$a", ROOT),
    "label": ("search --label --set=a root", "$a", "hd0"),
    "file": ("search --file /k --set=a", "$a", "hd0"),
    "nothing found": ("if search --set=a --fs-uuid 1234; then set a=x; fi", "y$a", "y"),
    "source": ("source $prefix/more.cfg", "$a", "more"),
    "dot": (". ($root)/boot/grub/more.cfg", "$a", "more"),
    "a missing source": ("if source /nowhere; then set a=1; fi", "y$a", "y"),
    "file tests": ("if [ -f /k -a -d /boot -a ! -e /none ]; then set a=1; fi", "$a", "1"),
    "braces in words": ("set a={x}", "$a", "{x}"),
}  # fmt: skip


@pytest.mark.parametrize("name", LANGUAGE)
def test_the_language_is_grub_s(name: str) -> None:
    """Variables before an entry are seen in it."""
    before, words, expected = LANGUAGE[name]
    script = f"{before}\nmenuentry x {{ linux /k {words}\n}}\n"
    assert line(script, {"/boot/grub/more.cfg": "set a=more\n"}) == expected


def test_an_entry_s_arguments_are_positional() -> None:
    """What stands behind the title of menuentry."""
    assert line("menuentry title --class c one --id i 'two three' { linux /k $1 $2 \"$3\" }") == 'title one "two three"'


def test_an_entry_does_not_change_what_others_see() -> None:
    found = menu("set a=1\nmenuentry x { set a=2; linux /k $a }\nmenuentry y { linux /k $a }")
    assert [choice.load().command_line for choice in found.choices] == ["BOOT_IMAGE=/k 2", "BOOT_IMAGE=/k 1"]


def test_several_initrds_are_all_loaded() -> None:
    """Microcode comes first."""
    found = entry("menuentry x { linux (hd0)/k\n initrd /boot/initrd.img-6.1 (hd0)/boot/vmlinuz-5.10 }")
    assert [file.path for file in found.initrds] == ["/boot/initrd.img-6.1", "/boot/vmlinuz-5.10"]


def test_a_script_may_start_a_kernel_without_a_menu() -> None:
    assert entry("linux /k a\nboot").command_line == "BOOT_IMAGE=/k a"


def test_the_fallback_comes_after_the_default() -> None:
    found = menu("set default=1\nset fallback='0 5'\nmenuentry x { linux /k }\nmenuentry y { linux /k }")
    assert [choice.title for choice in found.candidates()] == ["y", "x"]


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("chainloader +1", "another boot loader"),
        ("multiboot2 /boot/xen.gz\nmodule2 /k", "multiboot"),
        ("kfreebsd /boot/kernel", "BSD"),
        ("linux (hd5)/k", "no kernel"),
        ("true", "no kernel"),
    ],
)
def test_what_is_no_linux_is_told(command: str, reason: str) -> None:
    """So that "No bootable device" has a reason."""
    with pytest.raises(BootError, match=reason):
        entry(f"menuentry x {{ {command}\n}}")


NEVER_ENDING = {
    "while": "while true; do set a=1; done",
    "until": "until false; do true; done",
    "recursion": "function f { f; }\nf",
    "recursion in conditions": "function f { if f; then f; fi; }\nf",
    "a file that includes itself": "source /boot/grub/grub.cfg",
    "a file that goes to itself": "configfile /boot/grub/grub.cfg",
    "an entry that goes to its file": "menuentry x { configfile /boot/grub/grub.cfg }",
    "submenus without end": "function f { submenu x { f }\n}\nf",
    "entries without end": "while true; do menuentry x { linux /k }\ndone",
    "doubling": "set a=xxxxxxxx\nwhile true; do set a=$a$a; done",
    "doubling by words": "set a='x x x x x x'\nwhile true; do set a=\"$a $a\"; done",
    "many variables": "set a=x\nwhile true; do set a=x$a; set $a=1; done",
    "arguments": 'function f { f "$@" "$@"\n}\nf a b',
    "for": "for a in a b c d e f g h; do " * 12 + "true; " + "done;" * 12,
}


@pytest.mark.parametrize("name", NEVER_ENDING)
def test_what_would_never_end_ends_as_an_error(name: str) -> None:
    """Within the budget, whatever the form of the loop."""
    with pytest.raises(BootError):
        entry(NEVER_ENDING[name])


@pytest.mark.parametrize(
    "script",
    [
        *("if true; then", "menuentry x {", "}", "fi", "set a='", 'set a="', "for x in a b", "function f", "| x"),
        *("if true; then " * 100 + "fi;" * 100, "{" * 1000, "menuentry a { " * 1000, "[ " + "! " * 5000 + "]"),
        *("[ " + "( " * 150 + " ]", "while", "menuentry", "linux", "search --set", "load_env -f", "probe", "$", "\\"),
    ],
)
def test_scripts_that_are_not_whole_are_refused_or_empty(script: str) -> None:
    """Nothing else than BootError comes out."""
    with pytest.raises(BootError):
        entry(script)


def test_expressions_are_as_in_the_manual() -> None:
    def look(path: str) -> tuple[Kind, int] | None:
        return {"/d": (Kind.DIRECTORY, 10), "/f": (Kind.FILE, 5), "/empty": (Kind.FILE, 0)}.get(path)

    true = (
        *("a", "a = a", "a == a", "a != b", "a < b", "2 -lt 10", "10 -ge 10", "-n a", "-z ''", "! a = b"),
        *("-d /d", "-f /f", "-s /f", "-e /d", "! -s /empty"),
        *("a = b -o c = c", "( a = a -o x ) -a b", "! ( a = b )"),
    )
    false = (
        *("", "''", "a = b", "a != a", "-z a", "-n ''", "! a", "a -gt 5", "9 -lt 5"),
        *("-f /d", "-d /f", "-e /none", "a = a -a b = c", "x -a ''"),
    )
    words = {text: ["" if word == "''" else word for word in text.split()] for text in (*true, *false)}
    assert [text for text in true if not holds(words[text], look)] == []
    assert [text for text in false if holds(words[text], look)] == []


def test_versions_are_sorted_by_their_numbers() -> None:
    assert newest_first(["a-6.9.conf", "a-6.10.conf", "a-0-rescue.conf"]) == [
        *("a-6.10.conf", "a-6.9.conf", "a-0-rescue.conf"),
    ]
