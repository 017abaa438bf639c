"""Read what a pickle describes without doing what it says.

A pickle is a program for a stack machine whose instructions can import and call anything. This
machine of our own knows the instructions that build plain values, and hands every name and every
call to its owner, which decides what they mean. Nothing of Python's `pickle` is used: there is no
import, no attribute, no method call and no memory that grows faster than the file.
"""

import struct
from collections.abc import Callable, Iterator
from typing import Any, Protocol

MAX_BYTES = 256 << 20
"""Longest pickle that is read; DeepSpeed's have a few MiB."""

# What calls may copy in all. Without a limit a small file could copy one long list a million times.
_MAX_COPIED = 50_000_000
_KEY_TYPES = (str, bytes, int, type(None))


class StructureError(Exception):
    """The pickle is damaged, or does what a checkpoint has no reason to do."""


class Owner(Protocol):
    """Gives names and calls their meaning."""

    def find_name(self, module: str, name: str) -> object:
        """Return what stands for a global name, or raise."""

    def call(self, function: object, arguments: tuple[object, ...]) -> object:
        """Return what stands for the result of a call, or raise."""

    def build(self, target: object, state: object) -> object:
        """Return what stands for an object that was given its state, or raise."""

    def find_record(self, record: object) -> object:
        """Return what stands for a persistent id, or raise."""


def read_structure(data: bytes, owner: Owner) -> Any:
    """Carry out a pickle's instructions on plain values.

    Args:
        data: The pickle, of any protocol.
        owner: Decides about names and calls.

    Raises:
        StructureError: It is cut off, damaged, or uses an instruction that no checkpoint needs.

    Time and memory: proportional to the data.
    """
    if len(data) > MAX_BYTES:
        raise StructureError(f"its structure has {len(data):,} bytes; {MAX_BYTES:,} are the limit")
    return _Machine(data, owner).run()


class _Machine:
    """The stack, the marked stacks below it, and the memo."""

    def __init__(self, data: bytes, owner: Owner) -> None:
        self._data = data
        self._at = 0
        self._owner = owner
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self._copied = 0

    def run(self) -> Any:
        """Run until STOP and return the one value that is left."""
        while True:
            opcode = self.take(1)[0]
            if opcode == _STOP:
                break
            action = _ACTIONS.get(opcode)
            if action is None:
                raise StructureError(f"instruction {opcode:#04x}, which no checkpoint needs")
            action(self)
        if len(self._stack) != 1 or self._below:
            raise StructureError("it does not end with one value")
        return self._stack[0]

    # --- bytes ---

    def take(self, count: int) -> bytes:
        end = self._at + count
        if end > len(self._data):
            raise StructureError("it is cut off")
        taken = self._data[self._at : end]
        self._at = end
        return taken

    def take_number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def take_line(self) -> bytes:
        end = self._data.find(b"\n", self._at)
        if end < 0:
            raise StructureError("it is cut off")
        line = self._data[self._at : end]
        self._at = end + 1
        return line

    # --- stack ---

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def pop(self) -> Any:
        if not self._stack:
            raise StructureError("it takes a value from an empty stack")
        return self._stack.pop()

    def top(self) -> Any:
        if not self._stack:
            raise StructureError("it looks at an empty stack")
        return self._stack[-1]

    def mark(self) -> None:
        self._below.append(self._stack)
        self._stack = []

    def pop_marked(self) -> list[Any]:
        if not self._below:
            raise StructureError("it looks for a mark that is not there")
        taken = self._stack
        self._stack = self._below.pop()
        return taken

    def discard(self) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self.pop_marked()

    # --- values ---

    def push_number(self, form: str) -> None:
        self.push(self.take_number(form))

    def push_long(self, form: str) -> None:
        count = self.take_number(form)
        self.push(int.from_bytes(self.take(max(count, 0)), "little", signed=True))

    def push_integer_line(self) -> None:
        line = self.take_line()
        is_truth = line in (b"00", b"01")  # how protocol 0 writes a bool
        self.push(line == b"01" if is_truth else int(line.removesuffix(b"L")))

    def push_text(self, form: str, encoding: str = "utf-8") -> None:
        taken = self.take(self.take_number(form))
        self.push(taken.decode(encoding, "surrogatepass" if encoding == "utf-8" else "strict"))

    def push_bytes(self, form: str) -> None:
        self.push(self.take(self.take_number(form)))

    def push_tuple(self, count: int) -> None:
        items = [self.pop() for _ in range(count)]
        self.push(tuple(items[::-1]))

    # --- containers ---

    def push_dict(self) -> None:
        items = self.pop_marked()
        self.push({})
        self.set_items(items)

    def append(self, values: list[Any]) -> None:
        target = self.top()
        if isinstance(target, list):
            target.extend(values)
        elif not hasattr(target, "ignores_items"):
            raise StructureError(f"it appends to a {type(target).__name__}")

    def set_items(self, items: list[Any]) -> None:
        target = self.top()
        if len(items) % 2:
            raise StructureError("it sets a key without a value")
        if isinstance(target, dict):
            for key, value in _pairs(items):
                target[check_key(key)] = value
        elif not hasattr(target, "ignores_items"):
            raise StructureError(f"it sets an item of a {type(target).__name__}")

    def add_items(self, values: list[Any]) -> None:
        target = self.top()
        if not isinstance(target, set):
            raise StructureError(f"it adds to a {type(target).__name__}")
        target.update(check_key(value) for value in values)

    # --- memo ---

    def put(self, key: int) -> None:
        self.memo[key] = self.top()

    def get(self, key: int) -> None:
        if key not in self.memo:
            raise StructureError("it asks for a value that was never kept")
        self.push(self.memo[key])

    # --- names and calls ---

    def push_name(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise StructureError("it asks for a name that is no text")
        self.push(self._owner.find_name(module, name))

    def push_name_lines(self) -> None:
        module, name = self.take_line().decode(), self.take_line().decode()
        self.push_name(module, name)

    def push_name_stacked(self) -> None:
        name = self.pop()
        self.push_name(self.pop(), name)

    def call(self) -> None:
        arguments = self.pop()
        function = self.pop()
        if not isinstance(arguments, tuple):
            raise StructureError("it calls with arguments that are no tuple")
        self._copied += sum(len(value) for value in arguments if hasattr(value, "__len__"))
        if self._copied > _MAX_COPIED:
            raise StructureError("it copies more than a checkpoint has reason to")
        self.push(self._owner.call(function, arguments))

    def build(self) -> None:
        state = self.pop()
        self.push(self._owner.build(self.pop(), state))

    def push_record(self) -> None:
        self.push(self._owner.find_record(self.pop()))

    # --- protocol ---

    def start(self) -> None:
        version = self.take(1)[0]
        if version > 5:
            raise StructureError(f"pickle protocol {version} is not known")


def check_key(key: Any) -> Any:
    """Refuse keys that are slow to hash or to find, and return all others.

    Tuples in tuples in tuples take twice as long per level; large integers can be chosen so that
    all have the same hash.
    """
    parts = key if type(key) is tuple else (key,)
    for part in parts:
        if not isinstance(part, _KEY_TYPES) and not hasattr(part, "ignores_items"):
            raise StructureError(f"a {type(part).__name__} is used as a key")
        if isinstance(part, int) and abs(part) >= 1 << 60:
            raise StructureError("a huge number is used as a key")
    return key


def _pairs(items: list[Any]) -> Iterator[tuple[Any, Any]]:
    return zip(items[::2], items[1::2], strict=True)


_STOP = ord(".")
_ACTIONS: dict[int, Callable[[_Machine], object]] = {
    0x80: _Machine.start,
    0x95: lambda m: m.take(8),  # FRAME: a hint for readers of streams
    # Values.
    ord("N"): lambda m: m.push(None),
    0x88: lambda m: m.push(True),
    0x89: lambda m: m.push(False),
    ord("I"): _Machine.push_integer_line,
    ord("L"): _Machine.push_integer_line,
    ord("J"): lambda m: m.push_number("<i"),
    ord("K"): lambda m: m.push_number("<B"),
    ord("M"): lambda m: m.push_number("<H"),
    0x8A: lambda m: m.push_long("<B"),
    0x8B: lambda m: m.push_long("<i"),
    ord("F"): lambda m: m.push(float(m.take_line())),
    ord("G"): lambda m: m.push_number(">d"),
    ord("V"): lambda m: m.push(m.take_line().decode("raw-unicode-escape")),
    ord("X"): lambda m: m.push_text("<I"),
    0x8C: lambda m: m.push_text("<B"),
    0x8D: lambda m: m.push_text("<Q"),
    ord("T"): lambda m: m.push_text("<I", "latin-1"),
    ord("U"): lambda m: m.push_text("<B", "latin-1"),
    ord("B"): lambda m: m.push_bytes("<I"),
    ord("C"): lambda m: m.push_bytes("<B"),
    0x8E: lambda m: m.push_bytes("<Q"),
    0x96: lambda m: m.push_bytes("<Q"),
    # Containers.
    ord("("): _Machine.mark,
    ord("0"): _Machine.discard,
    ord("1"): lambda m: m.pop_marked(),
    ord("2"): lambda m: m.push(m.top()),
    ord("]"): lambda m: m.push([]),
    ord("}"): lambda m: m.push({}),
    ord(")"): lambda m: m.push(()),
    0x8F: lambda m: m.push(set()),
    ord("l"): lambda m: m.push(m.pop_marked()),
    ord("t"): lambda m: m.push(tuple(m.pop_marked())),
    ord("d"): _Machine.push_dict,
    0x85: lambda m: m.push_tuple(1),
    0x86: lambda m: m.push_tuple(2),
    0x87: lambda m: m.push_tuple(3),
    0x91: lambda m: m.push(frozenset(check_key(value) for value in m.pop_marked())),
    ord("a"): lambda m: m.append([m.pop()]),
    ord("e"): lambda m: m.append(m.pop_marked()),
    ord("s"): lambda m: m.set_items([m.pop(), m.pop()][::-1]),
    ord("u"): lambda m: m.set_items(m.pop_marked()),
    0x90: lambda m: m.add_items(m.pop_marked()),
    # Memo.
    ord("p"): lambda m: m.put(int(m.take_line())),
    ord("q"): lambda m: m.put(m.take(1)[0]),
    ord("r"): lambda m: m.put(m.take_number("<I")),
    0x94: lambda m: m.put(len(m.memo)),
    ord("g"): lambda m: m.get(int(m.take_line())),
    ord("h"): lambda m: m.get(m.take(1)[0]),
    ord("j"): lambda m: m.get(m.take_number("<I")),
    # Names and calls; INST, OBJ, NEWOBJ_EX and the extension codes are not here.
    ord("c"): _Machine.push_name_lines,
    0x93: _Machine.push_name_stacked,
    ord("R"): _Machine.call,
    0x81: _Machine.call,
    ord("b"): _Machine.build,
    ord("Q"): _Machine.push_record,
}
