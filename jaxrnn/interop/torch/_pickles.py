"""A pickle as data: what its program would build, in plain containers. Nothing that it names is imported or called.

``pickletools.genops`` reads the program; a call in it becomes a record of the call, a class a record of its name. Only
text and numbers are keys of dicts: to hash what a stranger nested takes time without end.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import Any


class Named:
    """Something that a pickle names: ``torch._utils _rebuild_tensor_v2``."""

    def __init__(self, name: str):
        self.name = name


class Made:
    """What a call or a class would have made: by whom, from what, and the state given to it afterwards."""

    def __init__(self, by: Any, args: Any):
        self.by = by.name if isinstance(by, Named) else ""
        self.args = args
        self.state: Any = None


EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_SET": set, "EMPTY_TUPLE": tuple}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
LITERALS = (
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "UNICODE"),
    *("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING", "SHORT_BINSTRING"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
)
DICTS = ("collections OrderedDict", "collections defaultdict", "builtins dict", "__builtin__ dict")


def tree_of(program: bytes) -> Any:
    """What a pickle would build.

    Raises:
        ValueError and others: programs that are damaged, or of operations that are not read.
    """
    stack: list[Any] = []
    marks: list[int] = []  # how high the stack was
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        start = marks.pop()
        taken = stack[start:]
        del stack[start:]
        return taken

    arg: Any
    for operation, arg, _ in pickletools.genops(program):
        op = operation.name
        if op in LITERALS:
            stack.append(arg)
        elif op in CONSTANTS:
            stack.append(CONSTANTS[op])
        elif op in EMPTY:
            stack.append(EMPTY[op]())
        elif op == "MARK":
            marks.append(len(stack))
        elif op in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if op == "MEMOIZE" else arg] = stack[-1]
        elif op in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[arg])
        elif op in ("TUPLE", "LIST", "FROZENSET"):
            items = since_mark()
            stack.append(items if op == "LIST" else tuple(items))
        elif op in ("TUPLE1", "TUPLE2", "TUPLE3"):
            stack[-int(op[-1]) :] = [tuple(stack[-int(op[-1]) :])]
        elif op in ("APPEND", "APPENDS", "ADDITEMS"):
            items = [stack.pop()] if op == "APPEND" else since_mark()
            if isinstance(stack[-1], list):
                stack[-1].extend(items)
        elif op in ("SETITEM", "SETITEMS", "DICT"):
            items = since_mark() if op != "SETITEM" else [stack.pop(-2), stack.pop()]
            if op == "DICT":
                stack.append({})
            if isinstance(stack[-1], dict):
                pairs = zip(items[::2], items[1::2], strict=True)
                stack[-1].update((key, value) for key, value in pairs if isinstance(key, str | int))
        elif op == "GLOBAL":
            stack.append(Named(arg))
        elif op == "STACK_GLOBAL":
            name, module = stack.pop(), stack.pop()
            stack.append(Named(f"{module} {name}"))
        elif op in ("REDUCE", "NEWOBJ", "NEWOBJ_EX"):
            if op == "NEWOBJ_EX":
                stack.pop()
            args, by = stack.pop(), stack.pop()
            stack.append({} if isinstance(by, Named) and by.name in DICTS else Made(by, args))
        elif op == "BUILD":
            state = stack.pop()
            if isinstance(stack[-1], Made):
                stack[-1].state = state
        elif op == "BINPERSID":
            stack.append(Made(Named("persistent"), stack.pop()))
        elif op == "POP":
            stack.pop()
        elif op == "POP_MARK":
            since_mark()
        elif op == "DUP":
            stack.append(stack[-1])
        elif op == "STOP":
            (made,) = stack
            return made
        elif op not in ("PROTO", "FRAME"):
            raise ValueError(f"the operation {op} is not read")
    raise ValueError("it stops short")
