"""Select rows by an expression: the language of get_all_where and get_all_records_where.

::

    expression = term (("and" | "or") term)*
    term       = "not" expression | "(" expression ")" | "true" | "false" | value "=" value
    value      = "field" STRING | STRING

``and`` and ``or`` have one strength and group to the left; ``not`` takes all that follows, up to the
parenthesis that closes round it. A STRING stands in double quotes and has no escapes. Keywords are
lower case; blanks, tabs and newlines are optional everywhere, so ``field"uuid"="…"`` is valid.
Fields go by their names in the database (`Field.column`), internal ones included, and ``_ref``.
What is compared is always the stored text of both sides (`Type.stored`).

An expression is read once into a tree and that into a function of a row, with the comparison done on
the typed value wherever this cannot differ from comparing texts. Where the whole expression can only
be true for one uuid, reference or name, the table's index narrows the rows first.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from operator import attrgetter
from typing import NamedTuple

from xapi.datamodel import Class, errors
from xapi.datamodel.lexical import DecodeError, format_datetime, parse_datetime
from xapi.datamodel.types import STRING, BoolType, DateTimeType, EnumType, IntType, RefType, StringType, Type
from xapi.store.memory import Store
from xapi.store.rows import R, Row, Table

LONGEST = 300 * 1024
"""Characters that an expression may have: as many as fit into one XML-RPC call."""
DEEPEST = 100
"""How deep parentheses and ``not`` may nest."""
REMEMBERED = 4096
"""Longer expressions are compiled at each use, so that the cache stays small."""

Predicate = Callable[[Row], bool]


class ExpressionError(ValueError):
    """The text is no expression, or names a field that the class lacks; the message says where."""


class FieldError(ExpressionError):
    """The expression is well formed, but the class has no such field; the message is its name."""


@dataclass(frozen=True, slots=True)
class Value:
    """One side of a comparison: a field by its database name, or a literal."""

    text: str
    is_field: bool = False


@dataclass(frozen=True, slots=True)
class Constant:
    value: bool


@dataclass(frozen=True, slots=True)
class Equal:
    left: Value
    right: Value


@dataclass(frozen=True, slots=True)
class Negation:
    inner: Node


@dataclass(frozen=True, slots=True)
class Chain:
    """Terms joined by ``and`` and ``or``, all of one strength, evaluated from left to right."""

    first: Node
    rest: tuple[tuple[str, Node], ...]


Node = Constant | Equal | Negation | Chain


class _Token(NamedTuple):
    text: str
    at: int


_TOKEN = re.compile(r'[ \t\n]*(?:(true|false|field|and|or|not|[=()]|"[^"]*")|\Z)')


def _tokens(text: str) -> list[_Token]:
    """Split into tokens; the last one is empty. Keywords need no blanks round them, as in xapi."""
    tokens = []
    at = 0
    while True:
        match = _TOKEN.match(text, at)
        if match is None:
            raise ExpressionError(f"no word of the language at character {at}")
        word = match.group(1)
        if word is None:
            tokens.append(_Token("", len(text)))
            return tokens
        tokens.append(_Token(word, match.start(1)))
        at = match.end()


class _Parser:
    """Recursive descent, as deep as the nesting, which is limited."""

    def __init__(self, text: str) -> None:
        self.tokens = iter(_tokens(text))
        self.next = next(self.tokens)

    def take(self) -> _Token:
        token = self.next
        self.next = next(self.tokens, token)
        return token

    def expect(self, wanted: str) -> None:
        token = self.take()
        if token.text != wanted:
            raise ExpressionError(
                f"{wanted or 'the end'} expected at character {token.at}, not {token.text or 'the end'}"
            )

    def whole(self) -> Node:
        node = self.expression(0)
        self.expect("")
        return node

    def expression(self, depth: int) -> Node:
        first = self.term(depth)
        rest = []
        while self.next.text in ("and", "or"):
            rest.append((self.take().text, self.term(depth)))
        return Chain(first, tuple(rest)) if rest else first

    def term(self, depth: int) -> Node:
        if depth > DEEPEST:
            raise ExpressionError(f"more than {DEEPEST} nested parentheses or negations")
        word = self.next.text
        if word == "not":
            self.take()
            return Negation(self.expression(depth + 1))
        if word == "(":
            self.take()
            inner = self.expression(depth + 1)
            self.expect(")")
            return inner
        if word in ("true", "false"):
            return Constant(self.take().text == "true")
        left = self.value()
        self.expect("=")
        return Equal(left, self.value())

    def value(self) -> Value:
        token = self.take()
        is_field = token.text == "field"
        if is_field:
            token = self.take()
        if not token.text.startswith('"'):
            raise ExpressionError(f"a string expected at character {token.at}, not {token.text or 'the end'}")
        return Value(token.text[1:-1], is_field)


def parse(text: str) -> Node:
    """Return the tree of an expression; time is linear in its length. Raises ExpressionError."""
    if len(text) > LONGEST:
        raise ExpressionError(f"longer than {LONGEST} characters")
    return _Parser(text).whole()


class _Columns:
    """Attribute and type of each column of a class. Hashes by class, so that it can key a cache."""

    def __init__(self, cls: Class) -> None:
        self.cls = cls

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Columns) and other.cls is self.cls

    def __hash__(self) -> int:
        return id(self.cls)

    def find(self, name: str) -> tuple[str, Type]:
        """Return attribute and type of a column. Raises FieldError."""
        found = self._by_name.get(name)
        if found is None:
            raise FieldError(name)
        return found

    @cached_property
    def _by_name(self) -> dict[str, tuple[str, Type]]:
        columns: dict[str, tuple[str, Type]] = {
            field.column: (field.name, field.type) for field in self.cls.fields.values()
        }
        return columns | {"_ref": ("_ref", STRING)}


class _Query(NamedTuple):
    test: Predicate
    narrowing: tuple[str, str] | None
    """Indexed attribute and the value that it must have, if the expression demands one."""


_PLAIN = (StringType, EnumType, RefType)
"""The types whose stored text is the value itself."""
_INDEXED = ("_ref", "uuid", "name_label")


def _always(row: Row) -> bool:
    return True


def _never(row: Row) -> bool:
    return False


def _typed(kind: Type, literal: str) -> object:
    """Return the one value whose stored text is the literal; None when no value has that text."""
    if isinstance(kind, BoolType):
        return {"true": True, "false": False}.get(literal)
    if isinstance(kind, IntType):
        try:
            value = kind.decode(literal)
        except DecodeError:
            return None
        return value if kind.stored(value) == literal else None  # nothing is stored as 007
    if isinstance(kind, DateTimeType):
        try:
            moment = parse_datetime(literal)
        except DecodeError:
            return None
        return moment if format_datetime(moment) == literal else None
    raise TypeError(f"{kind.name} is compared as text")


def _field_is(attribute: str, kind: Type, literal: str) -> Predicate:
    get: Callable[[Row], object] = attrgetter(attribute)
    if isinstance(kind, _PLAIN):
        return lambda row: get(row) == literal
    if isinstance(kind, BoolType | IntType | DateTimeType):
        value = _typed(kind, literal)
        return _never if value is None else lambda row: get(row) == value
    stored = kind.stored
    return lambda row: stored(get(row)) == literal


def _equal(node: Equal, columns: _Columns) -> Predicate:
    left, right = node.left, node.right
    if not left.is_field and not right.is_field:
        return _always if left.text == right.text else _never
    if not left.is_field:
        left, right = right, left
    one, kind = columns.find(left.text)
    if not right.is_field:
        return _field_is(one, kind, right.text)
    other, kind2 = columns.find(right.text)
    get: Callable[[Row], object] = attrgetter(one)
    get2: Callable[[Row], object] = attrgetter(other)
    if isinstance(kind, _PLAIN) and isinstance(kind2, _PLAIN):
        return lambda row: get(row) == get2(row)
    stored, stored2 = kind.stored, kind2.stored
    return lambda row: stored(get(row)) == stored2(get2(row))


def _chain(node: Chain, columns: _Columns) -> Predicate:
    first = _predicate(node.first, columns)
    rest = [(word == "and", _predicate(term, columns)) for word, term in node.rest]
    if len(rest) == 1:
        second = rest[0][1]
        if rest[0][0]:
            return lambda row: first(row) and second(row)
        return lambda row: first(row) or second(row)

    def test(row: Row) -> bool:
        holds = first(row)
        for is_and, term in rest:
            if holds is is_and:  # otherwise the term cannot change anything
                holds = term(row)
        return holds

    return test


def _predicate(node: Node, columns: _Columns) -> Predicate:
    if isinstance(node, Constant):
        return _always if node.value else _never
    if isinstance(node, Equal):
        return _equal(node, columns)
    if isinstance(node, Negation):
        inner = _predicate(node.inner, columns)
        return lambda row: not inner(row)
    return _chain(node, columns)


def _demanded(node: Node) -> Iterable[Equal]:
    """Yield comparisons without which the expression cannot be true."""
    if isinstance(node, Equal):
        yield node
    elif isinstance(node, Chain):
        words = [word for word, _ in node.rest]
        # Grouping to the left, whatever follows the last "or" is demanded: (… or x) and y and z.
        start = len(words) - words[::-1].index("or") if "or" in words else -1
        if start == -1:
            yield from _demanded(node.first)
        for _, term in node.rest[max(start, 0) :]:
            yield from _demanded(term)


def _narrowing(node: Node, columns: _Columns) -> tuple[str, str] | None:
    found: dict[str, str] = {}
    for equal in _demanded(node):
        left, right = equal.left, equal.right
        if left.is_field != right.is_field:
            name, literal = (left.text, right.text) if left.is_field else (right.text, left.text)
            attribute, _ = columns.find(name)
            found.setdefault(attribute, literal)
    return next(((name, found[name]) for name in _INDEXED if name in found), None)


def _compile(columns: _Columns, expression: str) -> _Query:
    node = parse(expression)
    return _Query(_predicate(node, columns), _narrowing(node, columns))


_compiled = lru_cache(maxsize=512)(_compile)


def _candidates(table: Table[R], narrowing: tuple[str, str] | None) -> Iterable[R]:
    """Return the rows that an index leaves to be tested."""
    if narrowing is None:
        return table
    attribute, literal = narrowing
    if attribute == "name_label":
        return table.by_name_label(literal)
    if attribute == "_ref":
        row = table.get(literal)
        return () if row is None else (row,)
    try:
        return (table.by_uuid(literal),)
    except errors.Fault:
        return ()


def select(table: Table[R], expression: str) -> list[R]:
    """Return the rows of a table for which the expression is true.

    Raises INVALID_VALUE for a text that is no expression, and for an unknown field what xapi's database says of
    one; it would say so only of a table that has rows.
    """
    columns = _Columns(table.cls)
    try:
        make = _compiled if len(expression) <= REMEMBERED else _compile
        query = make(columns, expression)
    except FieldError as error:
        raise errors.Fault("INTERNAL_ERROR", "missing field", str(error), "") from None
    except ExpressionError as error:
        raise errors.INVALID_VALUE(expression, str(error)) from None
    if query.test is _always:
        return list(table)
    test = query.test
    return [row for row in _candidates(table, query.narrowing) if test(row)]


def select_roles(store: Store, expression: str) -> list[Row]:
    """Return role rows: ``subroles<>[]`` gives the roles, ``subroles=[]`` the basic permissions.

    Any other text gives both: roles have a language of their own, which never fails.
    """
    if expression == "subroles<>[]":
        return [row for row in store.role if row.subroles]
    if expression == "subroles=[]":
        return [row for row in store.role if not row.subroles]
    return list(store.role)
