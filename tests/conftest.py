"""Eight simulated CPU devices for every test, set before JAX is imported."""

import os
import random
import sys

DEVICES = 8
# With as many threads as devices the collectives of simulated devices dead-lock on few cores.
os.environ.setdefault("PJRT_NPROC", str(4 * DEVICES))
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + f" --xla_force_host_platform_device_count={DEVICES}"
)

import jax  # noqa: E402
import pytest  # noqa: E402
from small_runs import keep_compiled_programs, write_npz  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
keep_compiled_programs()


# Files whose tests take minutes, most of them waiting for other processes.
LONGEST = ("test_faults", "test_hosts", "test_loop", "test_full_disk", "test_launch", "test_resume")


def pytest_collection_modifyitems(items):
    """Runs the longest tests first, so that no worker is left with one when the others are done."""
    items.sort(key=lambda item: item.path.stem not in LONGEST)


@pytest.fixture(scope="session")
def npz(tmp_path_factory):
    """Images that a ResNet-8 learns in seconds."""
    return write_npz(tmp_path_factory.mktemp("data") / "noise.npz")


@pytest.fixture
def rng():
    """Draws what nobody thought of. A test that fails shows the seed; with it, it fails again."""
    seed = int(os.environ.get("TEST_SEED") or random.SystemRandom().randrange(10**6))
    print(f"to draw the same again: TEST_SEED={seed}")
    return random.Random(seed)


@pytest.fixture
def no_tensorflow(monkeypatch):
    """Importing TensorFlow fails, and `import_tf` raises."""
    from atkd_jax.data.tf import import_tf

    monkeypatch.setitem(sys.modules, "tensorflow", None)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    import_tf.cache_clear()
    yield
    import_tf.cache_clear()


@pytest.fixture(autouse=True)
def abort_raises(monkeypatch):
    """A command that fails ends its process at once, which here would end the tests."""
    monkeypatch.setattr("atkd_jax.runtime.hosts.abort", sys.exit)
