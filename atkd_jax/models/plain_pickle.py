"""Reads a pickle as data: what PyTorch's files need, and no more.

A pickle is a program for a stack machine, and Python's own machine calls whatever it names. This
one calls nothing: functions stay names on the stack, and the few that rebuild tensors are handled
by name. Nor can a hostile file keep it busy for long. Values may be shared, so a small file can
build a huge value; everything that traverses a value is therefore bounded. Keys of dictionaries are
short strings or numbers (the hash of a nested tuple may take for ever), and a pickle has at most a
million instructions.
"""

from __future__ import annotations

import pickletools
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

MOST_INSTRUCTIONS = 1_000_000  # a ResNet-50 with its optimiser's state takes 50,000
MOST_DIMENSIONS = 32
MOST_ARGUMENTS = 16
MOST_CHARACTERS = 1000  # of a name

# Known to occur in checkpoints beside tensors; skipped.
SKIPPED = {
    "_codecs.encode",
    "argparse.Namespace",
    "builtins.set",
    "__builtin__.set",
    "collections.Counter",
    "numpy.dtype",
    "numpy.ndarray",
    "pathlib.PosixPath",
    "torch.device",
} | {
    f"numpy.{core}.{name}"
    for core in ("core", "_core")
    for name in ("multiarray.scalar", "multiarray._reconstruct", "numeric._frombuffer")
}
TENSORS = (
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
    "torch.Size",
    "collections.OrderedDict",
)


class Unreadable(ValueError):
    """A file cannot be read; the message is the reason, for a user to read."""


class Global(NamedTuple):
    """A global that a pickle names: "module.name"."""

    path: str


class Storage(NamedTuple):
    """The location of a tensor's numbers: PyTorch's type name ("FloatStorage") and a key."""

    kind: str
    key: str


class Tensor(NamedTuple):
    """A tensor whose numbers have not been read: a view of `storage`, in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def load(file: IO[bytes]) -> tuple[Any, dict[str, Storage]]:
    """The value of the pickle at the file's position; moves the position past it.

    Returns:
      None, bool, int, float, str, bytes, list, tuple, dict (with str or int keys), `Storage`,
      `Tensor`, or these nested; anything in SKIPPED becomes None. Second, all storages by key.

    Raises:
      Unreadable: it does more, or more often, than a checkpoint has reason to.
      Exception: of any type, if it is damaged.
    """
    stack: list[Any] = []
    below_marks: list[list[Any]] = []
    memo: dict[int, Any] = {}
    storages: dict[str, Storage] = {}
    left = MOST_INSTRUCTIONS
    for instruction, arg in _instructions(file):
        left -= 1
        match instruction:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop(), storages
            case "MARK":
                below_marks.append(stack)
                stack = []
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(instruction == "NEWTRUE")
            case _ if instruction in CONSTANTS:
                stack.append(arg)
            case "BINPUT" | "LONG_BINPUT":
                memo[arg] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[arg])
            case "EMPTY_TUPLE":
                stack.append(())
            case "EMPTY_LIST" | "EMPTY_SET":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                size = int(instruction[-1])
                stack[-size:] = [tuple(stack[-size:])]
            case "TUPLE":
                stack, value = below_marks.pop(), tuple(stack)
                stack.append(value)
            case "APPEND":
                item = stack.pop()
                stack[-1].append(item)
            case "APPENDS" | "ADDITEMS":
                stack, items = below_marks.pop(), stack
                stack[-1].extend(items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _set(stack[-1], key, value)
            case "SETITEMS":
                stack, items = below_marks.pop(), stack
                for key, value in zip(items[::2], items[1::2], strict=True):
                    _set(stack[-1], key, value)
            case "GLOBAL":
                stack.append(_global(arg.replace(" ", ".", 1)))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(_global(f"{shown(module)}.{shown(name)}"))
            case "BINPERSID":
                storage = _storage(stack.pop())
                storages[storage.key] = storage
                stack.append(storage)
            case "REDUCE" | "NEWOBJ":
                args, function = stack.pop(), stack.pop()
                if type(function) is not Global or type(args) is not tuple:
                    raise TypeError("this cannot be called")
                if function.path == "collections.OrderedDict" and args:
                    left -= len(args[0])  # the same list may be given again and again
                stack.append(_rebuild(function.path, args))
            case "BUILD":
                stack.pop()  # attributes, which are ignored
            case _:
                raise Unreadable(
                    f"it holds the pickle instruction {instruction}, which torch.save does not"
                    " write; save the network's state_dict() alone, with torch.save"
                )
        if left < 0:
            raise Unreadable(
                "it holds too much beside tensors (over a million values); save the network's"
                " state_dict() alone"
            )
    raise AssertionError("genops ends with STOP")


CONSTANTS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
    *("BINSTRING", "SHORT_BINSTRING", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}


def _instructions(file: IO[bytes]) -> Iterator[tuple[str, Any]]:
    """Yields names and arguments; raises Unreadable if the pickle ends too early."""
    instructions = pickletools.genops(file)
    try:
        for opcode, arg, _ in instructions:
            yield opcode.name, arg
    except Exception as error:
        if file.read(1):
            raise
        raise Unreadable("it ends too early: it is cut off, or damaged") from error


def _set(target: Any, key: Any, value: Any) -> None:
    if type(target) is not dict:
        raise TypeError("items are set of something that is no dictionary")
    if not _is_name(key) and not is_number(key):
        raise Unreadable(
            f"it holds a dictionary with a key that is neither a name nor a number ({shown(key)});"
            " save the network's state_dict() alone"
        )
    target[key] = value


def _is_name(x: Any) -> bool:
    return type(x) is str and len(x) <= MOST_CHARACTERS


def is_number(x: Any) -> bool:
    return type(x) is int and abs(x) < 2**63


def _global(path: str) -> Global:
    if path in SKIPPED or path in TENSORS or _is_storage(path):
        return Global(path)
    if path.startswith("torch._utils._rebuild"):
        raise Unreadable(
            f"it holds tensors that are no plain arrays ({shown(path)}): quantised, sparse or of a"
            " rare type; save them as dense float32"
        )
    raise Unreadable(
        f"it asks for {shown(path)}, and only tensors are read, never code; save the network's"
        " state_dict() alone"
    )


def _is_storage(path: str) -> bool:
    return path.startswith("torch.") and path.endswith("Storage")


def _storage(pid: Any) -> Storage:
    if type(pid) is not tuple or len(pid) > MOST_ARGUMENTS:
        raise TypeError("no storage")
    tag, function, key, _, _, *view = pid
    if tag != "storage" or type(function) is not Global or not _is_name(key):
        raise TypeError("no storage")
    if not _is_storage(function.path) or any(x is not None for x in view):
        raise TypeError("no storage, or a view of another")
    return Storage(function.path.rpartition(".")[2], key)


def _rebuild(function: str, args: tuple) -> Any:
    """The value that a function of SKIPPED or TENSORS would return."""
    if len(args) > MOST_ARGUMENTS:
        raise TypeError("too many arguments")
    match function:
        case "torch._utils._rebuild_tensor" | "torch._utils._rebuild_tensor_v2":
            storage, offset, shape, strides, *_ = args
            if type(storage) is not Storage or max(len(shape), len(strides)) > MOST_DIMENSIONS:
                raise TypeError("no tensor")
            if not all(map(is_number, (offset, *shape, *strides))):
                raise TypeError("a tensor whose shape is not of whole numbers")
            return Tensor(storage, offset, tuple(shape), tuple(strides))
        case "torch._utils._rebuild_parameter" | "torch.Size":
            return args[0]
        case "collections.OrderedDict":
            result: dict = {}
            for key, value in args[0] if args else ():  # Python 2 wrote the items here
                _set(result, key, value)
            return result
    if function not in SKIPPED:
        raise TypeError("a storage is no function")
    return None


def shown(name: Any) -> str:
    """A name from a file, readable: short, on one line, with nothing invisible."""
    if type(name) is not str:
        return str(name) if is_number(name) else f"a {type(name).__name__}"
    short = name if len(name) <= 80 else f"{name[:60]} ... {name[-16:]}"
    return short if short.isprintable() else ascii(short)
