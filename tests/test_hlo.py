"""Collective operations are read from what XLA prints."""

from pathlib import Path

import pytest

from atkd_jax.runtime.hlo import Count, collectives, seconds, shape_bytes

# The loop of this program, compiled for v5e:2x2 by libtpu 0.0.42.1 (jax 0.10.2), x bfloat16
# [1024, 256] on every device:
#     x = ppermute(x); z = all_gather(x); a, b = pmean((float32(x.T @ z[:1024]), x.sum()))
#     x = x @ bfloat16(a) + b
LOOP = Path(__file__).parent / "loop_v5e_2x2.hlo"


def test_a_loop_of_the_tpu_compiler():
    x = 1024 * 256 * 2
    assert collectives(LOOP.read_text()) == {
        "all-gather": Count(1, x),
        "all-reduce": Count(2, 256 * 256 * 4 + 2),
        "collective-permute": Count(1, x),
    }


def test_a_program_of_one_device_has_none():
    assert collectives("  ROOT %add.1 = f32[8]{0} add(%x, %all-reduce_like)") == {}


def test_one_operation_on_several_arrays_counts_once():
    text = """
  %a = f32[8,128]{1,0:T(8,128)} parameter(0)
  %b.1 = (bf16[3]{0:T(256)}, s32[]{:T(128)}) fusion(%a), kind=kLoop, calls=%f
  ROOT %r = (f32[8,128]{1,0}, bf16[3]{0}, s32[]) all-reduce(%a, /*index=1*/%b.1), to_apply=%add
"""
    assert collectives(text) == {"all-reduce": Count(1, 4096 + 6 + 4)}


def test_arrays_that_are_joined_are_not_charged():
    """Two lines of a ResNet-50's forward pass on v5e:4x8, shortened."""
    text = """
  %custom-call.67 = bf16[3,3,256,256] custom-call(%a, %b), custom_call_target="ConcatBitcast"
  %custom-call.68 = bf16[3,3,256,256] custom-call(%c, %d), custom_call_target="ConcatBitcast"
"""
    assert seconds(text, {"optimal_seconds": -1.9763}) == pytest.approx(0.0237)
    assert seconds("", {"optimal_seconds": 0.25}) == 0.25 and seconds("", {}) == 0


@pytest.mark.parametrize(
    "shape, size",
    [
        ("f32[]", 4),
        ("bf16[4,256]{1,0:T(8,128)(2,1)S(1)}", 2048),
        ("(pred[3]{0}, u8[5]{0}, s64[2]{0})", 24),
        ("f8e4m3fn[10]{0}", 10),
        ("s4[3]{0}", 2),
        ("token[]", 0),
        ("()", 0),
    ],
)
def test_sizes(shape, size):
    assert shape_bytes(shape) == size
