"""Gives damaged and hostile files to the readers of weights; a program, so that it can be limited.

    python tests/fuzz_weights.py FOLDER

A file gives tensors, or a ValueError of one line that names the file. Everything else fails:
another exception, an end by a signal, more memory than MEMORY, more CPU time than SECONDS. The file
that was being read stays as FOLDER/weights. Examples are the same every time.
"""

import json
import pickletools
import resource
import sys
import zipfile
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from weight_files import (
    Call,
    Global,
    Raw,
    legacy_bytes,
    opcodes,
    ordered_dict,
    pickled,
    safetensors_bytes,
    tensor,
    zip_bytes,
)

from atkd_jax.models.torch_file import load_torch

MEMORY = 2**29  # bytes beside what Python and JAX take
SECONDS = 150  # of CPU time, which a busy machine does not use up; all take 15
EXAMPLES = 400
FILE = Path(sys.argv[1]) / "weights"

NUMBERS = {"0": np.arange(24, dtype="f4"), "1": np.arange(5)}
CHECKPOINT = {
    "epoch": 3,
    "state_dict": {
        "conv1.weight": tensor(),
        "bn1.num_batches_tracked": tensor("1", (), (), "LongStorage", 2, 5),
    },
    "optimizer": {"state": {0: {"buffer": tensor("0", (24,), (1,))}}, "lr": [0.1, None, True]},
    "args": Call(Global("argparse", "Namespace"), ()),
}
CODE = pickled(CHECKPOINT)
HEADER = {
    "__metadata__": {"format": "pt"},
    "conv1.weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "fc.bias": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [24, 28]},
}
FILES = (
    zip_bytes(CODE, NUMBERS),
    zip_bytes(CODE, NUMBERS, zipfile.ZIP_DEFLATED),
    legacy_bytes(CODE, NUMBERS),
    safetensors_bytes(HEADER, bytes(28)),
)

# Small pickles of which Python's own unpickler builds what no machine can hash, compare or hold.
TWICE = b"q\x00h\x00\x86"  # x -> (x, x), by the memo
MANY = 100_000
SHARED = b"(" + b"K\x01" * MANY + b"tq\x01"  # a tuple, in the memo
HOSTILE = {
    "a key whose hash takes 2**60 steps": (b"}(" + b")" + TWICE * 60 + b"Nu", "neither a name"),
    "a key nested a million times": (b"}(" + b")" + b"\x85" * 900_000 + b"Nu", "neither a name"),
    "a set of such": (b"\x8f(" + b")" + TWICE * 60 + b"\x90", "not a state dict"),
    "a storage's kind": (b"(X\x07\x00\x00\x00storage)" + TWICE * 60 + b"NNNtQ", "damaged"),
    "a value nested a million times": (
        b"}(X\x01\x00\x00\x00a)" + b"\x85" * 900_000 + b"u",
        "only a",
    ),
    "a memo of 2**31 places": (b"}r\xff\xff\xff\x7f", "no state dict"),
    "text of 4 GiB": (b"X\xff\xff\xff\xff", "ends too early"),
    "bytes of 2**62": (b"\x8e" + (2**62).to_bytes(8, "little"), "ends too early"),
    "two million values": (b"](" + b"N" * 2_000_000 + b"e", "over a million values"),
    "a tuple given as arguments again and again": (
        SHARED + b"cargparse\nNamespace\nq\x02" + b"h\x02h\x01R" * MANY,
        "damaged",
    ),
    "items of a dictionary given again and again": (
        b"ccollections\nOrderedDict\nq\x00]q\x01("
        + b"]q\x02(X\x01\x00\x00\x00aK\x01e"
        + b"h\x02" * MANY
        + b"e"
        + b"h\x00h\x01\x85R" * MANY,
        "over a million values",
    ),
    "a shape of many numbers": (opcodes(tensor(shape=Raw(SHARED))), "damaged"),
    "a shape of large numbers": (
        opcodes(tensor(shape=Raw(b"\x8b\x00\x00\x10\x00" + b"\x7f" * 2**20 + b"\x85"))),
        "damaged",
    ),
    "a dictionary in itself": (b"}q\x00X\x01\x00\x00\x00ah\x00s", "only a"),
    "a tensor that is replaced": (
        opcodes(ordered_dict([["a.b", tensor()], ["a.b", 1]])),
        "only a.b",
    ),
}


def check(data: bytes, message: str = "") -> None:
    """Reads a file; every array as well, to its last number."""
    FILE.write_bytes(data)
    try:
        for array in load_torch(FILE).tensors.values():
            array.astype("f4").sum()
        assert not message, "it was read"
    except ValueError as error:
        text = str(error)
        assert text.startswith(f"cannot read weights from {FILE}: "), text
        assert text.isprintable() and len(text) < 2000, text
        assert message in text and "too little memory" not in text, text


def edited(draw, parts: list, pieces: st.SearchStrategy) -> list:
    """Parts taken out, doubled, exchanged or replaced."""
    parts = list(parts)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(parts)))
        until = at + draw(st.integers(0, 3))
        kind = draw(st.sampled_from(("cut", "drop", "double", "put", "many")))
        if kind == "cut":
            parts = parts[:at]
        elif kind == "drop":
            parts[at:until] = []
        elif kind == "double":
            parts[at:at] = parts[at:until]
        elif kind == "put":
            parts[at:until] = [draw(pieces)]
        else:
            parts[at:at] = [draw(pieces)] * draw(st.sampled_from((2, 50, 5000)))
    return parts


def instructions(code: bytes) -> list[bytes]:
    places = [at for _, _, at in pickletools.genops(code)]
    return [code[a:b] for a, b in zip(places, [*places[1:], None], strict=True)]


OPCODES = st.sampled_from([opcode.code.encode("latin-1") for opcode in pickletools.opcodes])
PIECES = (
    st.builds(bytes.__add__, OPCODES, st.binary(max_size=9))
    | st.sampled_from([*instructions(CODE), SHARED, TWICE])
    | st.sampled_from((-1, 0, 1, 5, 24, 1000, 2**30)).map(opcodes)
    | st.sampled_from(["os\nsystem", "builtins\neval", "torch\nload", "torch\nFloatStorage"]).map(
        lambda name: f"c{name}\n".encode()
    )
)
HUGE = (-1, 0, 1, 24, 28, 2**31, 2**62, 2**63, 10**400, -(2**63))
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.sampled_from(HUGE) | st.text(max_size=4),
    lambda x: st.lists(x, max_size=40) | st.dictionaries(st.text(max_size=3), x, max_size=3),
    max_leaves=8,
)
same = settings(
    derandomize=True,
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@same
@given(st.data())
def damage_bytes(data):
    """Of the whole file, as a bad disk or a broken download would."""
    parts = [bytes([x]) for x in data.draw(st.sampled_from(FILES))]
    check(b"".join(edited(data.draw, parts, st.binary(min_size=1, max_size=8))))


@same
@given(st.data())
def damage_instructions(data):
    """Of the pickle, in a file that is whole otherwise."""
    code = b"".join(edited(data.draw, instructions(CODE), PIECES))
    check(data.draw(st.sampled_from((zip_bytes, legacy_bytes)))(code, NUMBERS))


@same
@given(st.data())
def damage_header(data):
    """Of a safetensors file, which stays JSON."""
    header = json.loads(json.dumps(HEADER))
    target = data.draw(st.sampled_from([header, *header.values()]))
    name = data.draw(st.sampled_from(sorted(target)))
    if isinstance(target[name], list) and data.draw(st.booleans()):
        target[name] = edited(data.draw, target[name], st.sampled_from(HUGE))
    else:
        target[name] = data.draw(JSON)
    check(safetensors_bytes(header, bytes(data.draw(st.integers(0, 40)))))


def main() -> None:
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, now + MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    for name, (code, message) in HOSTILE.items():
        for write in (zip_bytes, legacy_bytes):
            print(name, flush=True)
            check(write(b"\x80\x04" + code + b".", NUMBERS), message)
    for run in (damage_bytes, damage_instructions, damage_header):
        print(run.__name__, flush=True)
        run()


if __name__ == "__main__":
    main()
