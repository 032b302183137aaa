"""
Named tuples of arrays as one pointer each, within compiled code. Numba hands a tuple over entry by entry, and counts
references to each of its arrays wherever it goes. Of a step's networks, memory and storage that is a hundred arrays at every
turn: a third and more of what there is to compile.
"""

import hashlib
from typing import Any

from numba.core import types as numba_types
from numba.experimental import structref
from numba.extending import overload

types: Any = numba_types


@structref.register
class Reference(types.StructRef):  # type: ignore[misc]
    """
    The type of what points to the entries of a named tuple.

    :param fields: Names and types of the entries
    """

    name: str

    def __init__(self, fields: Any) -> None:
        super().__init__(fields)
        # Names of types stand in those of compiled functions, and this one would hold all that are within it
        self.name = f"Reference_{hashlib.sha256(self.name.encode()).hexdigest()[:24]}"


def referenced(value: Any) -> Any:
    """
    :param value: A named tuple
    :return: In compiled code, what points to its entries, which have the same names; likewise for named tuples among them,
        and for those in tuples
    """
    return value


@overload(referenced)
def _referenced(value):  # type: ignore[no-untyped-def]
    kinds: list[Reference] = []
    lines: list[str] = []

    def copied(of: Any, source: str) -> tuple[Any, str]:
        """The type of what stands in an entry's place, and an expression for it, behind the lines that make it."""
        if isinstance(of, types.BaseNamedTuple):
            entry = f"entry{len(lines)}"
            lines.append(f"{entry} = {source}")
            fields = [(name, *copied(its, f"{entry}.{name}")) for name, its in zip(of.fields, of.types, strict=True)]
            kind, made = Reference([(name, its) for name, its, _ in fields]), f"made{len(lines)}"
            lines.append(f"{made} = new(kind{len(kinds)})")
            lines.extend(f"{made}.{name} = {expression}" for name, _, expression in fields)
            kinds.append(kind)
            return kind, made
        if isinstance(of, types.BaseTuple):
            entries = [copied(its, f"{source}[{k}]") for k, its in enumerate(of.types)]
            return types.BaseTuple.from_types([its for its, _ in entries]), f"({''.join(f'{each}, ' for _, each in entries)})"
        return of, source

    _, result = copied(value, "value")
    names = {f"kind{k}": kind for k, kind in enumerate(kinds)}
    text = "\n    ".join(["def function(value):", *lines, f"return {result}"])
    namespace: dict[str, Any] = dict(new=structref.new) | names
    exec(text, namespace)
    return namespace["function"]
