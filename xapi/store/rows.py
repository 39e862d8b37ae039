"""One table a class, one row an object: the indexes and the two sides of each relation kept in step.

What changes them is `xapi.store.memory.Store`, which logs each change; here is how one is carried out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from operator import attrgetter
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, Generic, NamedTuple, TypeVar, cast

from xapi.datamodel import errors
from xapi.datamodel.types import NULL, Ref
from xapi.store.values import Unfit, fitting

if TYPE_CHECKING:
    from xapi.datamodel import Class, Field
    from xapi.store.memory import Store


class Row:
    """One object. Fields are attributes; assigning one is a change of the store.

    `_created` and `_modified` are the generations of its birth and last change; `_xml` and `_json`
    belong to `xapi.wire.fragments`.
    """

    __slots__ = ("_created", "_json", "_modified", "_ref", "_xml")
    _table: ClassVar[Table[Row]]
    _ref: Ref[Row]
    _created: int
    _modified: int
    _xml: bytes | None
    _json: bytes | None

    if not TYPE_CHECKING:  # which would take it for leave to assign any name

        def __setattr__(self, name: str, value: object) -> None:
            self._table.store._assign(self, name, value)

    def __repr__(self) -> str:
        return f"<{self._table.name} {self._ref}>"


R = TypeVar("R", bound=Row)

_uuid: Callable[[Row], str] = attrgetter("uuid")
_label: Callable[[Row], str] = attrgetter("name_label")

NO_REFS: Mapping[str, None] = MappingProxyType({})
"""The relation set of an object that nothing points to; sets that hold something are dicts."""


class Grave(NamedTuple):
    """What is remembered of a deleted object: event.from tells of it those who had seen it."""

    deleted: int
    created: int
    ref: str


class Table(Generic[R]):
    """All objects of one class."""

    def __init__(self, store: Store, cls: Class) -> None:
        self.store = store
        self.cls = cls
        self.name = cls.name
        self.rows: dict[str, R] = {}
        self.changes: dict[R, None] = {}
        """The rows in the order of their last change."""
        self.graves: deque[Grave] = deque()
        self.kept = frozenset(
            field.name for field in cls.fields.values() if cls.kept == "disk" and field.kept and not field.derived
        )
        self.kept_or_whole = self.kept | {""} if self.kept else self.kept
        """The names that log entries of durable changes have: a kept field's, or '' for the whole row."""
        self.settings = frozenset(field.name for field in cls.fields.values() if field.access == "RW") & self.kept
        """The fields that clients set."""
        asked_for = not cls.messages.keys().isdisjoint(("create", "introduce"))
        self.asked_for = asked_for and cls.name not in ("message", "console")
        """Whether objects are made only when clients ask for them; those two tell of what happens to guests."""
        slots = {"__slots__": tuple(cls.fields), "_table": self, "__module__": __name__}
        slotted = type(cls.name, (Row,), slots)
        self._class = cast("type[R]", slotted)
        # The slots' own setters, past Row.__setattr__.
        self.set: dict[str, Callable[[Row, object], None]] = {
            name: getattr(slotted, name).__set__ for name in (*cls.fields, *Row.__slots__)
        }
        self.fit = {field.name: fitting(field.type) for field in cls.fields.values() if not field.derived}
        """What looks at the values of each field that can be assigned."""
        self._by_uuid: dict[str, R] | None = {} if "uuid" in cls.fields else None
        self._by_label: dict[str, dict[R, None]] | None = {} if "name_label" in cls.fields else None
        self._relations = {field.name: field for field in cls.fields.values() if field.relation}
        self._indexed = frozenset({"uuid", "name_label", *self._relations}) & frozenset(cls.fields)
        self._defaults = {field.name: NO_REFS if field.derived else field.default for field in cls.fields.values()}
        self._assigned_relations = [field for field in self._relations.values() if not field.derived]
        self._derived_relations = [field for field in self._relations.values() if field.derived]

    def __getitem__(self, ref: str) -> R:
        row = self.rows.get(ref)
        if row is None:
            raise errors.HANDLE_INVALID(self.name, ref)
        return row

    def __contains__(self, ref: str) -> bool:
        return ref in self.rows

    def __iter__(self) -> Iterator[R]:
        return iter(self.rows.values())

    def __len__(self) -> int:
        return len(self.rows)

    def get(self, ref: str) -> R | None:
        """Return the object, or None for null and for what does not exist."""
        return self.rows.get(ref)

    def with_uuid(self, value: str) -> R | None:
        """Return the object with this uuid, or None."""
        return None if self._by_uuid is None else self._by_uuid.get(value)

    def by_uuid(self, value: str) -> R:
        """Return the object with this uuid. Raises UUID_INVALID."""
        row = self.with_uuid(value)
        if row is None:
            raise errors.UUID_INVALID(self.name, value)
        return row

    def by_name_label(self, label: str) -> list[R]:
        """Return the objects of this name, oldest first."""
        return list((self._by_label or {}).get(label, ()))

    def create(self, ref: str | None = None, /, **values: object) -> R:
        """Make an object; fields not given have their defaults, uuid and reference are new ones."""
        unknown = values.keys() - self.cls.fields.keys()
        if unknown or any(self.cls.fields[name].derived for name in values):
            raise TypeError(f"{self.name} has no assignable {', '.join(unknown) or 'such field'}")
        values = {name: self.fitted(name, value) for name, value in values.items()}
        if ref is None:
            ref = f"OpaqueRef:{self.store.uuids.draw(self.name)}"
        if "uuid" in self.cls.fields:
            if "uuid" not in values:
                values["uuid"] = self.store.uuids.draw(self.name)
            if self._by_uuid is not None and values["uuid"] in self._by_uuid:
                raise errors.DB_UNIQUENESS_CONSTRAINT_VIOLATION(self.name, "uuid", values["uuid"])
        if ref in self.rows:
            raise errors.DB_UNIQUENESS_CONSTRAINT_VIOLATION(self.name, "_ref", ref)
        row = self.make(ref, values)
        with self.store.atomic():
            self.store._create(row)
        return row

    def fitted(self, name: str, value: object) -> object:
        """Return a value as the field holds it. Raises VALUE_NOT_SUPPORTED."""
        try:
            return self.fit[name](value)
        except Unfit as error:
            raise errors.VALUE_NOT_SUPPORTED(f"{self.name}.{name}", f"{value!s:.80}", str(error)) from None

    def make(self, ref: str, values: Mapping[str, object]) -> R:
        """Return a row that is not in the table yet, for `create` and for loading."""
        row = self._class.__new__(self._class)
        put = self.set
        for name, value in {**self._defaults, **values}.items():
            put[name](row, value)
        put["_ref"](row, ref)
        put["_created"](row, 0)
        put["_modified"](row, 0)
        put["_xml"](row, None)
        put["_json"](row, None)
        return row

    def delete(self, ref: str) -> None:
        """Remove an object. Raises HANDLE_INVALID."""
        with self.store.atomic():
            self.store._delete(self[ref])

    def exhume(self, row: R) -> None:
        """Forget that a row was deleted, if that was told to anybody: the deletion is undone."""
        for grave in reversed(self.graves):
            if grave.ref == row._ref:
                self.graves.remove(grave)
                self.set["_created"](row, grave.created)
                return

    # What follows keeps rows, indexes and the far sides of relations in step; Store calls it.

    def _insert(self, row: R) -> None:
        self.rows[row._ref] = row
        self._index(row)
        for other, name in self.store._unmet.pop(row._ref, ()):
            other._table._relate(other, other._table.cls.fields[name], (row._ref,), ())
        for field in self._assigned_relations:
            self._relate(row, field, _refs(field, getattr(row, field.name)), ())

    def _remove(self, row: R) -> None:
        for field in self._assigned_relations:
            self._relate(row, field, (), _refs(field, getattr(row, field.name)))
        self._unindex(row)
        del self.rows[row._ref]
        for field in self._derived_relations:
            class_name, _, near = field.inverse.partition(".")
            others = self.store.tables[class_name].rows if class_name in self.store.tables else {}
            for ref in getattr(row, field.name):
                if ref in others:
                    self.store._unmet.setdefault(row._ref, {})[others[ref], near] = None

    def _index(self, row: R) -> None:
        if self._by_uuid is not None:
            self._by_uuid[_uuid(row)] = row
        if self._by_label is not None:
            self._by_label.setdefault(_label(row), {})[row] = None

    def _unindex(self, row: R) -> None:
        if self._by_uuid is not None:
            del self._by_uuid[_uuid(row)]
        if self._by_label is not None:
            same = self._by_label[label := _label(row)]
            del same[row]
            if not same:
                del self._by_label[label]

    def put(self, row: R, name: str, value: object) -> None:
        """Write one slot with all that hangs on it, unlogged."""
        if name not in self._indexed:
            self.set[name](row, value)
            return
        field = self._relations.get(name)
        if field is None:
            self._unindex(row)
            self.set[name](row, value)
            self._index(row)
            return
        before = _refs(field, getattr(row, name))
        self.set[name](row, value)
        after = _refs(field, value)
        self._relate(row, field, after, before)

    def _relate_all(self, field: Field) -> None:
        """Do for all rows, just loaded, what `_relate` does for one: nothing is there to be taken back."""
        class_name, _, far = field.inverse.partition(".")
        table = self.store.tables.get(class_name)
        if table is None:
            return
        read, read_far, put = attrgetter(field.name), attrgetter(far), table.set[far]
        targets, unmet = table.rows, self.store._unmet
        single = field.relation == "single"
        for row in self.rows.values():
            value = read(row)
            for ref in (value,) if single else value:
                target = targets.get(ref)
                if target is not None:
                    refs = read_far(target)
                    if refs is NO_REFS:
                        put(target, {row._ref: None})
                    else:
                        refs[row._ref] = None
                elif ref != NULL:
                    unmet.setdefault(ref, {})[row, field.name] = None

    def _relate(self, row: R, field: Field, after: Collection[str], before: Collection[str]) -> None:
        """Bring the far side of a relation up to date, where the far object exists."""
        class_name, _, far = field.inverse.partition(".")
        table = self.store.tables.get(class_name)
        if table is None:
            return
        unmet = self.store._unmet
        for ref in before:
            target = table.rows.get(ref)
            if target is None and ref in unmet:
                unmet[ref].pop((row, field.name), None)
                if not unmet[ref]:
                    del unmet[ref]
            if target is not None and ref not in after:
                refs = getattr(target, far)
                if row._ref in refs:
                    del refs[row._ref]
                    table.set[far](target, refs or NO_REFS)
                    self.store._touch(target, far)
        for ref in after:
            target = table.rows.get(ref)
            if target is None:
                unmet.setdefault(ref, {})[row, field.name] = None
            elif row._ref not in getattr(target, far):
                refs = getattr(target, far)
                if refs is NO_REFS:
                    table.set[far](target, {row._ref: None})
                else:
                    refs[row._ref] = None
                self.store._touch(target, far)


def _refs(field: Field, value: object) -> Collection[str]:
    if field.relation == "owner":
        return cast("tuple[str, ...]", value)
    return () if value == NULL else (str(value),)
