"""Reads and checks JSON files, which may be cut off, edited by hand, or from another program."""

from __future__ import annotations

import json
import reprlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from atkd_jax.errors import UserError

Check = Callable[[object], bool]


def read(path: Path, what: str, advice: str, checks: Mapping[str, Check]) -> dict[str, Any]:
    """Reads the object in a JSON file.

    Args:
      what: for the message, as in "the configuration of a run".
      advice: for the message, what to do about a file that is invalid.
      checks: key -> predicate on its value; "a.b" is key b of the object at a.

    Raises:
      UserError: the file contains no JSON object, or a key is missing or fails its check.
    """

    def complain(reason: str) -> UserError:
        return UserError(f"{path} is not {what} ({reason}); {advice}")

    try:
        value = json.loads(path.read_bytes().decode())
    except OSError as error:
        raise complain(error.strerror or str(error)) from error
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


def is_number(value: object) -> bool:
    """Whether float64 can represent a value; bool is not a number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= sys.float_info.max


def is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def is_text(value: object) -> bool:
    return isinstance(value, str)


def is_object(value: object) -> bool:
    return isinstance(value, dict)


def is_list_of(good: Check, length: int | None = None) -> Check:
    def check(value: object) -> bool:
        if not isinstance(value, list) or length not in (None, len(value)):
            return False
        return all(map(good, value))

    return check
