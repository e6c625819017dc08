"""A program is compiled once: by the first run, whatever the seed, process and folder."""

import os
from pathlib import Path

import jax
import pytest
from small_runs import command, start

from atkd_jax.cache import prune


class OwnCache:
    """The default cache of an empty home. Prints what is asked of it, and how often it has it."""

    def __init__(self, home: Path):
        self.home = home

    def __call__(self):
        os.environ["XDG_CACHE_HOME"] = str(self.home)
        jax.config.update("jax_compilation_cache_dir", None)
        jax.monitoring.register_event_listener(self.report)

    @staticmethod
    def report(event, **_):
        if event.startswith("/jax/compilation_cache/"):
            print(event.rpartition("/")[-1])


@pytest.mark.slow
def test_another_run_of_another_seed_compiles_nothing(npz, tmp_path):
    def counts(workdir, *overrides):
        arguments = command(npz, tmp_path / workdir, "--config.epochs=1", *overrides)
        process = start(arguments, tmp_path / f"{workdir}.log", prepare=OwnCache(tmp_path / "home"))
        assert process.wait() == 0, process.output
        events = ("compile_requests_use_cache", "cache_hits", "cache_misses")
        return [process.said.split().count(event) for event in events]

    programs, hits, written = counts("first")
    assert programs == hits + written and written >= 3  # initial state, steps, evaluation
    assert len(list((tmp_path / "home" / "atkd_jax" / "xla").iterdir())) == written
    again = counts("second", "--config.seed=5")
    assert again == [programs, programs, 0]


def test_what_was_not_used_for_longest_is_deleted_first(tmp_path):
    for i, name in enumerate("abcd"):
        (tmp_path / name).write_bytes(bytes(10))
        os.utime(tmp_path / name, (100 - i, 0))
    prune(tmp_path, 25)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    prune(tmp_path, 25)
    prune(tmp_path / "no-such-folder", 25)
    assert len(list(tmp_path.iterdir())) == 2
