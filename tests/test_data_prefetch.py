"""Prefetching keeps the order, and waiting for data is noticed."""

import jax.numpy as jnp

from atkd_jax.data.prefetch import DataWait, prefetch


def test_prefetch_keeps_the_order_and_looks_ahead():
    put = []

    def note(x):
        put.append(x)
        return jnp.asarray(x)

    out = []
    for x in prefetch(range(5), note, size=2):
        out.append(int(x))
        assert len(put) == min(out[-1] + 3, 5)
    assert out == [0, 1, 2, 3, 4]


def test_waiting_is_measured_and_reported_once():
    now = [0.0]

    def slow():
        for item in range(4):
            now[0] += 1.0  # to read it
            yield item

    wait = DataWait(clock=lambda: now[0])
    for _ in wait.timed(slow()):
        now[0] += 3.0  # to use it
    assert wait.share == 0.25
    assert wait.hint().startswith("25% of the time goes into waiting for data: ")
    assert wait.hint() is None
    quick = DataWait(clock=lambda: now[0])
    for _ in quick.timed(range(3)):
        now[0] += 1.0
    assert quick.share == 0 and quick.hint() is None
