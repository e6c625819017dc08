"""JSON files of ours, as they may come back: cut, edited by hand, or of another program."""

from __future__ import annotations

import json
import reprlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from atkd_jax.errors import UserError

Check = Callable[[Any], bool]


def read(path: Path, what: str, advice: str, checks: Mapping[str, Check]) -> dict[str, Any]:
    """The object in a file.

    Args:
      what: "the configuration of a run", for the message.
      advice: what to do about a file that is none.
      checks: key -> whether its value can be used; "a.b" is key b of the object at a.

    Raises:
      UserError: the file is not JSON, holds no object, or a key is missing or has such a value
        that nobody can use; one line with the file, the key and the advice.
    """

    def complain(reason: str) -> UserError:
        return UserError(f"{path} is not {what} ({reason}); {advice}")

    try:
        value = json.loads(path.read_bytes().decode())
    except OSError as error:
        raise complain(error.strerror) from error
    except UnicodeDecodeError as error:
        raise complain("it is not text") from error
    except (ValueError, RecursionError) as error:
        raise complain(f"it is not JSON: {error}" if path.stat().st_size else "empty") from error
    if not isinstance(value, dict):
        raise complain(f"it holds {reprlib.repr(value)} instead of an object")
    for key, good in checks.items():
        node = value
        for part in key.split("."):
            if not isinstance(node, dict) or part not in node:
                raise complain(f"it has no {key}")
            node = node[part]
        if not good(node):
            raise complain(f"{key} is {reprlib.repr(node)}")
    return value


def is_number(value: Any) -> bool:
    """What float64 can hold, and no bool."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and abs(value) <= sys.float_info.max


def is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def is_text(value: Any) -> bool:
    return isinstance(value, str)


def is_object(value: Any) -> bool:
    return isinstance(value, dict)


def is_list_of(good: Check, length: int | None = None) -> Check:
    def check(value: Any) -> bool:
        fits = isinstance(value, list) and length in (None, len(value))
        return fits and all(map(good, value))

    return check
