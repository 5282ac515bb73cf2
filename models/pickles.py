"""Read the pickle in a weight file of PyTorch's: what it describes, without running it and without following it anywhere.

PyTorch's own restricted reader runs no code either, but calls what a file names with what it says: it hashes whatever a file
makes a key of, allocates whatever size it gives, and takes as long as its instructions last. This one knows the same few
instructions, calls nothing, and counts.

Source: pytorch/pytorch@v2.5.1 torch/_weights_only_unpickler.py, torch/_utils.py (`_rebuild_tensor_v2` and its kin).
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable
from functools import cache
from typing import Any

from .pickle_values import (
    DENSE,
    FROM_TYPE,
    NOTE,
    ODD,
    PLAIN_TYPES,
    TENSOR_CLASS,
    WRAPPED,
    Described,
    Global,
    Odd,
    Storage,
    as_key,
    described_by,
    dtype_of,
    is_known,
    text_of,
)

LARGEST_PICKLE = 1 << 24
"""Bytes: names, shapes and notes; the numbers lie outside. A checkpoint of Stable Diffusion has 150 kB."""
MOST_STEPS = 1_000_000
"""Instructions; a tensor takes about 25."""
_LONGEST_GLOBAL = 200
_POLLED = 1 << 16


class Unpickler:
    """One or several pickles in a row.

    Args:
        data: What they lie in; the rest may be anything.
        poll: Called now and then, so that it can raise to end a long reading.
    """

    def __init__(self, data: bytes, poll: Callable[[], None] = lambda: None) -> None:
        self.data = data
        self.at = 0
        """Where the next one begins."""
        self.storages: dict[str, Storage] = {}
        """All that were named."""
        self._poll = poll
        self._steps = 0
        self._known: set[str] = set()

    def load(self) -> Any:
        """Read the next one.

        Returns:
            Text, numbers, lists, tuples, dictionaries; `Described`, `Odd`, `Global` and `NOTE` in place of everything else.

        Raises:
            pickle.UnpicklingError: It names something that files of tensors have no use for: code.
            ValueError: It is damaged or too large; a short reason.
        """
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        try:
            return self._run()
        except (IndexError, KeyError, TypeError, AttributeError, struct.error, UnicodeDecodeError) as error:
            is_cut = self.at >= len(self.data)
            raise ValueError("its list of tensors is " + ("cut short" if is_cut else "damaged")) from error

    def _run(self) -> Any:
        data, steps = self.data, _STEPS
        while True:
            self._steps += 1
            if self._steps % _POLLED == 0:
                self._poll()
            if self._steps > MOST_STEPS:
                raise ValueError(f"its list of tensors has more than {MOST_STEPS} instructions")
            code = data[self.at]
            self.at += 1
            if code == _STOP:
                return self.stack.pop()
            step = steps.get(code)
            if step is None:
                raise pickle.UnpicklingError(f"unknown instruction {code}")
            step(self)

    def _take(self, count: int) -> bytes:
        taken = self.data[self.at : self.at + count]
        self.at += count
        if len(taken) < count:
            raise IndexError
        return taken

    def _line(self) -> str:
        end = self.data.find(b"\n", self.at, self.at + _LONGEST_GLOBAL)
        if end < 0:
            raise IndexError
        line = self.data[self.at : end].decode()
        self.at = end + 1
        return line

    def _pop_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def _mark(self) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def _tuple_of(self, count: int) -> None:
        items = tuple(self.stack[-count:])
        if len(items) < count:
            raise IndexError
        self.stack[-count:] = [items]

    def _append(self, items: list[Any]) -> None:
        if (target := self.stack[-1]) is not NOTE:
            if type(target) is not list:
                raise TypeError
            target.extend(items)

    def _set_items(self, items: list[Any]) -> None:
        if (target := self.stack[-1]) is not NOTE:
            if type(target) is not dict:
                raise TypeError
            for index in range(0, len(items), 2):
                target[as_key(items[index], len(target))] = items[index + 1]

    def _global(self) -> None:
        module, name = self._line(), self._line()
        full = f"{'builtins' if module == '__builtin__' else module}.{name}"
        if full not in self._known:
            if not is_known(full):
                raise pickle.UnpicklingError(f"it names {full}")
            self._known.add(full)
        self.stack.append(Global(full))

    def _reduce(self) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = self._call(self.stack[-1], arguments)

    def _call(self, function: Any, arguments: Any) -> Any:
        """What comes of a call that the pickle asks for."""
        if not isinstance(function, Global) or type(arguments) is not tuple:
            raise TypeError
        name = function.name
        if name in DENSE:
            return described_by(arguments, DENSE[name])
        if name in WRAPPED:
            return arguments[0] if isinstance(arguments[0], (Described, Odd)) else NOTE
        if name in ODD:
            return Odd(ODD[name])
        if name == "collections.OrderedDict":
            return self._ordered(arguments[0]) if arguments else {}
        if name == "torch.Size":
            return arguments[0] if type(arguments[0]) is tuple else NOTE
        if name == FROM_TYPE:
            is_plain = isinstance(arguments[1], Global) and arguments[1].name in PLAIN_TYPES
            inner = arguments[0].name in DENSE
            return self._call(arguments[0], arguments[2]) if is_plain and inner else Odd("a tensor of a class of its own")
        if match := TENSOR_CLASS.fullmatch(name):
            return Odd("a sparse tensor" if match[1] else "a tensor in the form of PyTorch 0.1")
        return NOTE

    def _ordered(self, pairs: Any) -> dict[Any, Any]:
        # The same pairs can be given over and over.
        self._poll()
        self._steps += len(pairs)
        made: dict[Any, Any] = {}
        for key, value in pairs:
            made[as_key(key, len(made))] = value
        return made

    def _persistent(self) -> None:
        pid = self.stack.pop()
        if type(pid) is not tuple or len(pid) not in (5, 6) or text_of(pid[0]) != "storage":
            raise TypeError
        kind, key, numel = pid[1], text_of(pid[2]), pid[4]
        if not isinstance(kind, Global) or type(numel) is not int or numel < 0:
            raise TypeError
        storage = Storage(key, dtype_of(kind.name), numel)
        self.storages.setdefault(key, storage)
        if len(pid) == 6 and pid[5] is not None:
            _, start, size = pid[5]
            if not (type(start) is type(size) is int and 0 <= start <= start + size <= numel):
                raise TypeError
            storage = storage._replace(start=start, numel=size)
        self.stack.append(storage)


_STOP = pickle.STOP[0]


@cache
def _fixed(form: str) -> struct.Struct:
    return struct.Struct(form)


def _number(form: str) -> Callable[[Unpickler], None]:
    layout = _fixed(form)

    def step(self: Unpickler) -> None:
        self.stack.append(layout.unpack(self._take(layout.size))[0])

    return step


def _constant(value: Any) -> Callable[[Unpickler], None]:
    return lambda self: self.stack.append(value)


def _get(form: str) -> Callable[[Unpickler], None]:
    layout = _fixed(form)
    return lambda self: self.stack.append(self.memo[layout.unpack(self._take(layout.size))[0]])


def _put(form: str) -> Callable[[Unpickler], None]:
    layout = _fixed(form)

    def step(self: Unpickler) -> None:
        self.memo[layout.unpack(self._take(layout.size))[0]] = self.stack[-1]

    return step


def _unicode(self: Unpickler) -> None:
    self.stack.append(str(self._take(*_fixed("<I").unpack(self._take(4))), "utf-8", "surrogatepass"))


def _new_object(self: Unpickler) -> None:
    arguments, kind = self.stack.pop(), self.stack.pop()
    self.stack.append(self._call(kind, arguments))


def _build(self: Unpickler) -> None:
    self.stack.pop()  # attributes of what lies below: nobody here reads them
    if not self.stack:
        raise IndexError


def _tuple(self: Unpickler) -> None:
    items = tuple(self._pop_mark())
    self.stack.append(items)


def _set_item(self: Unpickler) -> None:
    value, key = self.stack.pop(), self.stack.pop()
    self._set_items([key, value])


_STEPS: dict[int, Callable[[Unpickler], Any]] = {
    code[0]: step
    for code, step in {
        pickle.PROTO: lambda self: self._take(1),
        pickle.GLOBAL: Unpickler._global,
        pickle.NEWOBJ: _new_object,
        pickle.REDUCE: Unpickler._reduce,
        pickle.BUILD: _build,
        pickle.APPEND: lambda self: self._append([self.stack.pop()]),
        pickle.APPENDS: lambda self: self._append(self._pop_mark()),
        pickle.SETITEM: _set_item,
        pickle.SETITEMS: lambda self: self._set_items(self._pop_mark()),
        pickle.MARK: Unpickler._mark,
        pickle.TUPLE: _tuple,
        pickle.TUPLE1: lambda self: self._tuple_of(1),
        pickle.TUPLE2: lambda self: self._tuple_of(2),
        pickle.TUPLE3: lambda self: self._tuple_of(3),
        pickle.NONE: _constant(None),
        pickle.NEWFALSE: _constant(False),
        pickle.NEWTRUE: _constant(True),
        pickle.EMPTY_TUPLE: _constant(()),
        pickle.EMPTY_LIST: lambda self: self.stack.append([]),
        pickle.EMPTY_DICT: lambda self: self.stack.append({}),
        pickle.EMPTY_SET: _constant(NOTE),
        pickle.BININT: _number("<i"),
        pickle.BININT1: _number("<B"),
        pickle.BININT2: _number("<H"),
        pickle.BINFLOAT: _number(">d"),
        pickle.BINUNICODE: _unicode,
        pickle.SHORT_BINSTRING: lambda self: self.stack.append(self._take(self._take(1)[0]).decode()),
        pickle.LONG1: lambda self: self.stack.append(pickle.decode_long(self._take(self._take(1)[0]))),
        pickle.BINPERSID: Unpickler._persistent,
        pickle.BINGET: _get("<B"),
        pickle.LONG_BINGET: _get("<I"),
        pickle.BINPUT: _put("<B"),
        pickle.LONG_BINPUT: _put("<I"),
    }.items()
}
