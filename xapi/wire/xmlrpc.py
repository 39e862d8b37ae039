"""XML-RPC on the wire: read a call, write an answer, both compact and strict.

A call is read with lxml: no entities, no DOCTYPE, no network, libxml2's limits on depth and size. Calls
whose parameters are all plain strings, as most are, a regular expression reads in a quarter of the time.
Values come out as str, int, bool, float, datetime, bytes, list, dict or None, for `xapi.types` to
decode. Answers are joined from text that the types and `xapi.wire.fragments` render.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Sequence
from datetime import datetime

from lxml import etree

from xapi.datamodel import errors
from xapi.datamodel.lexical import DecodeError, escape, format_datetime, parse_datetime
from xapi.datamodel.types import Type

CONTENT_TYPE = b"text/xml"

_HEAD = b'<?xml version="1.0"?><methodResponse><params><param>'
_FOOT = b"</param></params></methodResponse>"
SUCCESS = (
    _HEAD + b"<value><struct><member><name>Status</name><value>Success</value></member>" + b"<member><name>Value</name>"
)
SUCCESS_END = b"</member></struct></value>" + _FOOT
_FAILURE = (
    _HEAD
    + b"<value><struct><member><name>Status</name><value>Failure</value></member>"
    + b"<member><name>ErrorDescription</name><value><array><data>"
)
_FAILURE_END = b"</data></array></value></member></struct></value>" + _FOOT

VOID = SUCCESS + b"<value></value>" + SUCCESS_END


def success(value: bytes) -> bytes:
    """Return the whole answer for an encoded value."""
    return SUCCESS + value + SUCCESS_END


def failure(description: Sequence[str]) -> bytes:
    """Return the whole answer for an error: its code, then its parameters."""
    items = "".join(f"<value>{escape(item)}</value>" for item in description)
    return _FAILURE + items.encode(errors="replace") + _FAILURE_END


def bare(value: bytes) -> bytes:
    """Return an answer without the Status struct: system.listMethods."""
    return _HEAD + value + _FOOT


# Printable ASCII without markup: text that means itself. A body that does not match is left to lxml.
_TEXT = r"[ -%'-;=?-~]*+"
_VALUE = r"<value>(?:<string>" + _TEXT + r"</string>|" + _TEXT + r")</value>"
_SPACE = r"[ \t\r\n]*+"
_PLAIN_PARAM = _SPACE.join(["<param>", _VALUE, "</param>", ""])
_PLAIN_CALL = re.compile(
    _SPACE.join(
        [
            r"""(?:<\?xml version=['"]1\.0['"](?: encoding=['"](?:utf-8|UTF-8)['"])? ?\?>)?""",
            "<methodCall>",
            r"<methodName>([\w.:-]++)</methodName>",
            "<params>",
            r"((?:" + _PLAIN_PARAM + r")*+)</params>",
            "</methodCall>",
            "",
        ]
    ),
    re.ASCII,
)
_PLAIN_VALUE = re.compile("<value>(?:<string>)?(" + _TEXT + ")<")

# Python's int() also takes underscores and the digits of other scripts.
_DECIMAL = re.compile(r"[+-]?\d{1,19}", re.ASCII)


class _Malformed(Exception):
    """The body is XML, but no XML-RPC call."""


def parse_call(body: bytes) -> tuple[str, list[object]]:
    """Return method name and parameters.

    Raises Fault: INVALID_VALUE for what is not UTF-8, INTERNAL_ERROR for all else that is no call.
    """
    plain = _PLAIN_CALL.fullmatch(body.decode("latin-1"))  # what matches is ASCII
    if plain is not None:
        name, values = plain.groups()
        return name, _PLAIN_VALUE.findall(values)
    if b"<!DOCTYPE" in body or b"\0" in body:
        raise errors.INTERNAL_ERROR("malformed XML-RPC call: DOCTYPE and NUL are not allowed")
    try:
        return _call(_parse(body))
    except (etree.XMLSyntaxError, ValueError) as error:
        _refuse_invalid_utf8(body)
        raise errors.INTERNAL_ERROR(f"malformed XML-RPC call: {error}") from None
    except _Malformed as error:
        raise errors.INTERNAL_ERROR(f"malformed XML-RPC call: {error}") from None


def _parse(body: bytes) -> etree._Element:
    # One parser a call: lxml's parsers keep an error log, and making one takes a microsecond.
    parser = etree.XMLParser(
        resolve_entities=False, no_network=True, remove_comments=True, remove_pis=True, collect_ids=False
    )
    return etree.fromstring(body, parser)


def _refuse_invalid_utf8(body: bytes) -> None:
    try:
        body.decode()
    except UnicodeDecodeError as error:
        start = max(body.rfind(b">", 0, error.start) + 1, error.start - 200)
        end = body.find(b"<", error.start)
        shown = body[start : end if end >= 0 else None][:400].decode(errors="replace")
        raise errors.INVALID_VALUE("Invalid UTF-8 string in parameter", shown) from None


def _call(root: etree._Element) -> tuple[str, list[object]]:
    if root.tag != "methodCall" or not len(root) or root[0].tag != "methodName":
        raise _Malformed("expected <methodCall><methodName>")
    name = (root[0].text or "").strip()
    if len(root) == 1:
        return name, []
    if root[1].tag != "params":
        raise _Malformed("expected <params>")
    params = []
    for param in root[1]:
        if param.tag != "param" or len(param) != 1:
            raise _Malformed("expected <param><value>")
        params.append(_value(param[0]))
    return name, params


def _value(element: etree._Element) -> object:
    if element.tag != "value":
        raise _Malformed(f"expected <value>, met <{element.tag!s}>")
    if not len(element):
        return element.text or ""
    child = element[0]
    read = _READ.get(child.tag)  # type: ignore[arg-type]
    if read is None or len(element) != 1:
        raise _Malformed(f"<{child.tag!s}> is no type of XML-RPC")
    return read(child)


def _text(element: etree._Element) -> str:
    if len(element):
        raise _Malformed(f"<{element.tag!s}> holds text only")
    return element.text or ""


def _int(element: etree._Element) -> int:
    text = _text(element).strip()
    if not _DECIMAL.fullmatch(text):
        raise _Malformed(f"{text[:40]!r} is no int")
    return int(text)


def _boolean(element: etree._Element) -> bool:
    text = _text(element).strip()
    if text not in ("0", "1"):
        raise _Malformed(f"{text[:20]!r} is no boolean")
    return text == "1"


def _datetime(element: etree._Element) -> datetime:
    try:
        return parse_datetime(_text(element).strip())
    except DecodeError as error:
        raise _Malformed(str(error)) from None


def _base64(element: etree._Element) -> bytes:
    try:
        return binascii.a2b_base64(_text(element))
    except binascii.Error as error:
        raise _Malformed(str(error)) from None


def _array(element: etree._Element) -> list[object]:
    if not len(element):
        return []
    if element[0].tag != "data" or len(element) != 1:
        raise _Malformed("expected <data>")
    return [_value(item) for item in element[0]]


def _struct(element: etree._Element) -> dict[str, object]:
    struct = {}
    for member in element:
        if member.tag != "member" or len(member) != 2 or member[0].tag != "name":
            raise _Malformed("expected <member><name><value>")
        struct[member[0].text or ""] = _value(member[1])
    return struct


_READ = {
    "string": _text,
    "int": _int,
    "i4": _int,
    "i8": _int,
    "boolean": _boolean,
    "double": lambda element: float(_text(element)),
    "dateTime.iso8601": _datetime,
    "base64": _base64,
    "nil": lambda element: None,
    "array": _array,
    "struct": _struct,
}


def encode(kind: Type, value: object) -> bytes:
    """Return ``<value>…</value>`` of a typed value."""
    return kind.xml(value).encode()


# As a client: of programs that speak XML-RPC


class AnswerError(Exception):
    """What was answered is no answer; the text says why."""


class AnswerFault(Exception):
    """XML-RPC's own kind of error."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(code, text)
        self.code = code
        self.text = text


def call(name: str, parameters: Sequence[object]) -> bytes:
    """Return a call of values as they came over a wire."""
    params = "".join(f"<param>{_untyped(value)}</param>" for value in parameters)
    head = f"<?xml version='1.0'?><methodCall><methodName>{escape(name)}</methodName>"
    return f"{head}<params>{params}</params></methodCall>".encode(errors="replace")


def _untyped(value: object) -> str:
    if isinstance(value, str):
        return f"<value><string>{escape(value)}</string></value>"
    if isinstance(value, bool):
        return f"<value><boolean>{int(value)}</boolean></value>"
    if isinstance(value, int):
        return f"<value><int>{value}</int></value>" if abs(value) < 1 << 31 else _untyped(str(value))
    if isinstance(value, float):
        return f"<value><double>{value!r}</double></value>"
    if isinstance(value, dict):
        members = (f"<member><name>{escape(str(key))}</name>{_untyped(each)}</member>" for key, each in value.items())
        return f"<value><struct>{''.join(members)}</struct></value>"
    if isinstance(value, list):
        return f"<value><array><data>{''.join(map(_untyped, value))}</data></array></value>"
    if isinstance(value, datetime):
        return f"<value><dateTime.iso8601>{format_datetime(value)}</dateTime.iso8601></value>"
    if isinstance(value, bytes):
        return f"<value><base64>{binascii.b2a_base64(value, newline=False).decode()}</base64></value>"
    return "<value><nil/></value>"


class Untyped(Type):
    """Whatever a program answered that is no part of the API: it goes on as it came."""

    name, annotation, empty = "untyped", "object", None

    def plain(self, value: object) -> object:
        """Return what orjson can print: bytes in base64."""
        if isinstance(value, bytes):
            return binascii.b2a_base64(value, newline=False).decode()
        if isinstance(value, dict):
            return {str(key): self.plain(each) for key, each in value.items()}
        return [self.plain(each) for each in value] if isinstance(value, list) else value

    def xml(self, value: object) -> str:
        """Return ``<value>…</value>`` with the type that the value has."""
        return _untyped(value)


_ANSWER = re.compile(rb".*?</methodResponse\s*>", re.DOTALL)
"""An answer up to its end; where text or comments hold such an end, it is cut there and is no XML."""


def parse_answer(body: bytes) -> object:
    """Return the one value of an answer, whatever was printed behind it. Raises AnswerError, AnswerFault."""
    whole = _ANSWER.match(body)
    if whole is not None:
        body = whole.group()
    if b"<!DOCTYPE" in body or b"\0" in body:
        raise AnswerError("DOCTYPE and NUL are not allowed")
    try:
        root = _parse(body.strip())
        found = root[0] if root.tag == "methodResponse" and len(root) == 1 else None
        if found is not None and found.tag == "fault" and len(found) == 1:
            fault = _value(found[0])
            if isinstance(fault, dict):
                raise AnswerFault(str(fault.get("faultCode", "")), str(fault.get("faultString", "")))
        if found is not None and found.tag == "params" and len(found) == 1 and len(found[0]) == 1:
            return _value(found[0][0])
    except (etree.XMLSyntaxError, ValueError, _Malformed) as error:
        raise AnswerError(str(error)) from None
    raise AnswerError("neither params nor fault")
