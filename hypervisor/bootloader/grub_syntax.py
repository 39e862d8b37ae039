"""Take a GRUB 2 script apart (GRUB manual, "Writing full configuration files directly").

The language is a small shell: words with quotes and variables, commands that end with a line or a semicolon,
``if``, ``for``, ``while``, ``until``, ``function``, and blocks in braces behind ``menuentry`` and ``submenu``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from hypervisor.bootloader.errors import BootError

_DEEPEST = 40


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a word: text, or a variable's name; what is `quoted` is not split at spaces."""

    text: str
    variable: bool
    quoted: bool


Word = tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Command:
    """A command with its words, and the block behind it."""

    words: tuple[Word, ...]
    block: Script | None = None


@dataclass(frozen=True, slots=True)
class If:
    """Conditions with what follows from each; `otherwise` when none is true."""

    branches: tuple[tuple[Script, Script], ...]
    otherwise: Script


@dataclass(frozen=True, slots=True)
class For:
    """A loop over words."""

    variable: str
    words: tuple[Word, ...]
    body: Script


@dataclass(frozen=True, slots=True)
class While:
    """A loop as long as a condition is `wanted`."""

    condition: Script
    wanted: bool
    body: Script


@dataclass(frozen=True, slots=True)
class Function:
    """The definition of a function."""

    name: str
    body: Script


Statement = Command | If | For | While | Function
Script = tuple[Statement, ...]
Token = Word | str
"""A word, or one of the marks newline, ;, { and }."""

_SPACE = re.compile(r"(?:[ \t\r]|\\\n)+")
_COMMENT = re.compile(r"#[^\n]*")
_PLAIN = re.compile(r"[^\s'\"\\$;{}|&<>#]+")
_VARIABLE = re.compile(r"\$(?:\{([A-Za-z_][A-Za-z0-9_]*|[0-9]+|[?*#@])\}|([A-Za-z_][A-Za-z0-9_]*|[0-9]|[?*#@]))")
_IN_QUOTES = re.compile(r"[^\"\\$]+")
_MARKS = "\n;{}|&<>"


def tokens(text: str) -> list[Token]:
    """Return the tokens of a script. Raises BootError for quotes that do not end."""
    found: list[Token] = []
    at = 0
    while at < len(text):
        match = _SPACE.match(text, at) or _COMMENT.match(text, at)
        if match:
            at = match.end()
        elif text[at] in _MARKS and not _braces_of_word(text, at):
            found.append(text[at])
            at += 1
        else:
            word, at = _word(text, at)
            found.append(word)
    return found


def _braces_of_word(text: str, at: int) -> bool:
    """Tell whether a brace is a word's first character: a block's brace stands alone."""
    return text[at] in "{}" and at + 1 < len(text) and text[at + 1] not in " \t\r\n;{}"


def _word(text: str, at: int) -> tuple[Word, int]:
    parts: list[Part] = []
    while at < len(text):
        character = text[at]
        if character in " \t\r\n;|&<>":
            break
        if character == "'":
            end = text.find("'", at + 1)
            if end < 0:
                raise BootError("a quote does not end")
            parts.append(Part(text[at + 1 : end], False, True))
            at = end + 1
        elif character == '"':
            at = _double(text, at + 1, parts)
        elif character == "\\":
            if text[at + 1 : at + 2] != "\n":
                parts.append(Part(text[at + 1 : at + 2], False, True))
            at += 2
        elif match := _VARIABLE.match(text, at):
            parts.append(Part(match[1] or match[2], True, False))
            at = match.end()
        else:
            match = _PLAIN.match(text, at)
            end = match.end() if match else at + 1
            parts.append(Part(text[at:end], False, False))
            at = end
    return tuple(parts), at


def _double(text: str, at: int, parts: list[Part]) -> int:
    """Read up to the closing double quote; return what is behind it."""
    parts.append(Part("", False, True))
    while at < len(text):
        character = text[at]
        if character == '"':
            return at + 1
        if character == "\\":
            following = text[at + 1 : at + 2]
            if following != "\n":
                parts.append(Part(following if following in '$"\\' else "\\" + following, False, True))
            at += 2
        elif match := _VARIABLE.match(text, at):
            parts.append(Part(match[1] or match[2], True, True))
            at = match.end()
        else:
            match = _IN_QUOTES.match(text, at)
            end = match.end() if match else at + 1
            parts.append(Part(text[at:end], False, True))
            at = end
    raise BootError("a quote does not end")


def parse(text: str) -> Script:
    """Return a script. Raises BootError for one that is not whole."""
    parser = _Parser(tokens(text))
    script = parser.script(())
    if parser.peek() is not None:
        raise BootError("the script has something that nothing begins")
    return script


def keyword(token: Token | None) -> str:
    """Return the text of a word that is only plain text, which can be reserved; "" for others."""
    if isinstance(token, tuple) and len(token) == 1 and not token[0].variable and not token[0].quoted:
        return token[0].text
    return ""


_ENDS = frozenset(("then", "elif", "else", "fi", "do", "done"))


class _Parser:
    def __init__(self, found: list[Token]) -> None:
        self._tokens = found
        self._at = 0
        self._depth = 0

    def peek(self) -> Token | None:
        return self._tokens[self._at] if self._at < len(self._tokens) else None

    def _next(self) -> Token:
        token = self.peek()
        if token is None:
            raise BootError("the script ends too early")
        self._at += 1
        return token

    def _skip_lines(self) -> None:
        while self.peek() in ("\n", ";"):
            self._at += 1

    def _expect(self, word: str) -> None:
        if keyword(self._next()) != word:
            raise BootError(f"the script lacks {word!r}")

    def script(self, ends: tuple[str, ...]) -> Script:
        """Read statements up to a reserved word or brace, which is left there."""
        self._depth += 1
        if self._depth > _DEEPEST:
            raise BootError("the script is nested too deep")
        found: list[Statement] = []
        while True:
            self._skip_lines()
            token = self.peek()
            if token is None or token == "}" or keyword(token) in _ENDS:
                break
            found.append(self._statement())
        self._depth -= 1
        if ends and (token if token == "}" else keyword(token)) not in ends:
            raise BootError(f"the script lacks {ends[-1]!r}")
        return tuple(found)

    def _statement(self) -> Statement:
        match keyword(self.peek()):
            case "if":
                return self._if()
            case "for":
                return self._for()
            case "while" | "until" as kind:
                self._at += 1
                condition = self.script(("do",))
                self._expect("do")
                body = self.script(("done",))
                self._expect("done")
                return While(condition, kind == "while", body)
            case "function":
                self._at += 1
                name = keyword(self._next())
                self._skip_lines()
                return Function(name, self._block())
        return self._command()

    def _if(self) -> If:
        branches: list[tuple[Script, Script]] = []
        otherwise: Script = ()
        self._at += 1
        while True:
            condition = self.script(("then",))
            self._expect("then")
            branches.append((condition, self.script(("elif", "else", "fi"))))
            end = keyword(self._next())
            if end == "else":
                otherwise = self.script(("fi",))
                self._expect("fi")
            if end != "elif":
                return If(tuple(branches), otherwise)

    def _for(self) -> For:
        self._at += 1
        variable = keyword(self._next())
        words: list[Word] = []
        if keyword(self.peek()) == "in":
            self._at += 1
            while isinstance(token := self.peek(), tuple):
                words.append(token)
                self._at += 1
        self._skip_lines()
        self._expect("do")
        body = self.script(("done",))
        self._expect("done")
        return For(variable, tuple(words), body)

    def _block(self) -> Script:
        if self._next() != "{":
            raise BootError("the script lacks '{'")
        body = self.script(("}",))
        self._at += 1
        return body

    def _command(self) -> Command:
        words: list[Word] = []
        while isinstance(token := self.peek(), tuple):
            words.append(token)
            self._at += 1
        if self.peek() == "{" and words:
            return Command(tuple(words), self._block())
        if not words:
            raise BootError(f"the script has {self._next()!r} where a command is due")
        return Command(tuple(words))
