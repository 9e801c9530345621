"""Reads a pickle without executing it: the opcodes build inert records, and no class or function is ever looked up.

Why not ``torch.load(weights_only=True)`` with stubs (measured with torch 2.15 and MLflow 3.17):

- A stock ``mlflow.pytorch.save_model`` of a ``class Net`` that lives in ``__main__`` pickles the class by value;
  torch stops at ``Unsupported operand 48`` (POP). Pickle protocol 4 and 5 stop at ``Unsupported operand 149`` (FRAME).
- It calls real functions (tensor rebuilding, ``__setstate__``); here a call is a record of its name and arguments.
- It needs torch in the child: 1.4 to 4 s and gigabytes of address space, where this needs 0.05 s and the pickle's size.

The tests compare the tensors found here with those of ``torch.load(weights_only=True)`` where torch can read the file.
"""

from __future__ import annotations

import pickletools
import re
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable
from typing import IO, Any

from .records import Global, Inert, MachineError, as_key, call, storage_of

MAX_NAME = 400
"""Longest module and attribute together, in characters."""


class _Mark:
    """Marks a place on the stack."""


_MARK = _Mark()
_PUSH_ARGUMENT = re.compile(r"LONG[14]?|(BIN)?INT[12]?|(BIN)?FLOAT|(SHORT_)?(BIN)?(STRING|UNICODE|BYTES)8?|BYTEARRAY8")
_PUSH_NEW: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
    "EMPTY_TUPLE": tuple,
}


class Machine:
    """The stack machine for one pickle.

    Args:
        stream: Positioned at the start of the pickle; left behind its STOP.

    Attributes:
        globals: Names met so far, also when `run` fails half-way: a loader would have executed up to there.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream = stream
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.globals: set[str] = set()

    def run(self) -> Any:
        """The object that the pickle describes, as records.

        Raises:
            MachineError: The pickle is corrupt, or resolves names that cannot be known without running it.
        """
        try:
            for opcode, argument, _ in pickletools.genops(self.stream):
                if opcode.name == "STOP":
                    return self.pop()
                self.step(opcode.name, argument)
        except MachineError:
            raise
        except Exception as error:  # genops raises many kinds on garbage; all mean the same here
            raise MachineError(f"corrupt pickle ({type(error).__name__}: {str(error)[:200]})") from error
        raise MachineError("the pickle ends without STOP")

    def step(self, name: str, argument: Any) -> None:
        """Apply one opcode."""
        push = self.stack.append
        if _PUSH_ARGUMENT.fullmatch(name):
            push(argument)
        elif name in _PUSH_NEW:
            push(_PUSH_NEW[name]())
        elif name in {"BINGET", "LONG_BINGET", "GET"}:
            push(self.memo[int(argument)])
        elif name in {"BINPUT", "LONG_BINPUT", "PUT"}:
            self.memo[int(argument)] = self.top()
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = self.top()
        elif name == "MARK":
            push(_MARK)
        elif name in {"TUPLE1", "TUPLE2", "TUPLE3"}:
            parts = [self.pop() for _ in range(int(name[-1]))]
            push(tuple(reversed(parts)))
        elif name == "TUPLE":
            push(tuple(self.pop_mark()))
        elif name == "LIST":
            push(self.pop_mark())
        elif name == "FROZENSET":
            push(frozenset(map(as_key, self.pop_mark())))
        elif name == "DICT":
            push(_paired(self.pop_mark()))
        elif name in {"APPEND", "APPENDS", "ADDITEMS"}:
            _extend(self, [self.pop()] if name == "APPEND" else self.pop_mark())
        elif name in {"SETITEM", "SETITEMS"}:
            flat = [self.pop(), self.pop()][::-1] if name == "SETITEM" else self.pop_mark()
            _set_items(self.top(), _paired(flat))
        elif name in {"GLOBAL", "STACK_GLOBAL"}:
            push(self.named(name, argument))
        elif name in {"REDUCE", "NEWOBJ"}:
            args, function = self.pop(), self.pop()
            if isinstance(function, Global) and function.name.endswith("subimport"):
                self.globals |= {
                    f"{function}({name[:80]})" for name in args if isinstance(name, str)
                }  # cloudpickle's import
            push(call(function, args if isinstance(args, tuple) else (args,)))
        elif name == "NEWOBJ_EX":
            keywords, args, function = self.pop(), self.pop(), self.pop()
            push(Inert(function, (args, keywords)))
        elif name == "OBJ":
            function, *args = self.pop_mark()
            push(call(function, tuple(args)))
        elif name == "INST":
            args = self.pop_mark()
            push(call(self.named(name, argument), tuple(args)))
        elif name == "BUILD":
            state = self.pop()
            _build(self.top(), state)
        elif name in {"PERSID", "BINPERSID"}:
            push(storage_of(argument if name == "PERSID" else self.pop()))
        elif name == "POP":
            self.stack.pop()
        elif name == "POP_MARK":
            self.pop_mark()
        elif name == "DUP":
            push(self.top())
        elif name in {"EXT1", "EXT2", "EXT4"}:
            self.globals.add("copyreg.extension")
            raise MachineError("it uses copyreg extension codes, whose meaning is not in the file")
        elif name not in {"PROTO", "FRAME"}:
            raise MachineError(f"opcode {name} is not supported")

    def named(self, opcode: str, argument: Any) -> Global:
        """The record for a global, entered into `globals`."""
        if opcode == "STACK_GLOBAL":
            name, module = self.pop(), self.pop()
        else:
            module, _, name = argument.partition(" ")
        if not isinstance(module, str) or not isinstance(name, str):
            self.globals.add("a name computed while loading")
            raise MachineError("it imports a name that is computed while loading")
        if len(module) + len(name) > MAX_NAME:
            self.globals.add(f"{module[:60]}...")
            raise MachineError("it imports an absurdly long name")
        # Python 2 names, as pickle maps them for protocols below 3: `__builtin__ eval` is builtins.eval.
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        self.globals.add(f"{module}.{name}")
        return Global(module, name)

    def top(self) -> Any:
        """The topmost value."""
        if self.stack[-1] is _MARK:
            raise MachineError("stack underflow")
        return self.stack[-1]

    def pop(self) -> Any:
        """Remove and give the topmost value."""
        value = self.top()
        self.stack.pop()
        return value

    def pop_mark(self) -> list[Any]:
        """Remove and give all values above the last mark."""
        position = len(self.stack) - 1
        while self.stack[position] is not _MARK:
            position -= 1
            if position < 0:
                raise MachineError("no mark on the stack")
        values = self.stack[position + 1 :]
        del self.stack[position:]
        return values


def _paired(flat: list[Any]) -> dict[Any, Any]:
    return dict(zip(map(as_key, flat[::2]), flat[1::2], strict=True))


def _extend(machine: Machine, values: list[Any]) -> None:
    target = machine.top()
    if isinstance(target, list):
        target.extend(values)
    elif isinstance(target, set):
        target.update(map(as_key, values))
    elif isinstance(target, Inert):
        target.items.extend(values)
    else:
        raise MachineError(f"items added to {type(target).__name__}")


def _set_items(target: Any, pairs: dict[Any, Any]) -> None:
    if isinstance(target, dict):
        target.update(pairs)
    elif isinstance(target, Inert):
        target.items.extend(pairs.items())
    else:
        raise MachineError(f"an item set on {type(target).__name__}")


def _build(target: Any, state: Any) -> None:
    if isinstance(target, Global):
        raise MachineError(f"it overwrites attributes of {target}")
    parts = state if isinstance(state, tuple) and len(state) == 2 else (state,)  # (attributes, slots)
    if isinstance(target, Inert):
        for part in parts:
            if isinstance(part, dict):
                target.attributes.update(part)
            elif part is not None:
                target.items.append(part)
