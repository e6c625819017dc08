"""The command line.

python -m atkd_jax.main --config=configs/cifar10.py:method=kd,pair=r56_r20 --workdir=DIR
"""

from __future__ import annotations

import os
import re
import sys
import traceback
from pathlib import Path

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from atkd_jax import hosts
from atkd_jax.plan import make_plan
from atkd_jax.signals import Interrupted, stop_signal
from atkd_jax.train import train_and_evaluate

CONFIG = config_flags.DEFINE_config_file("config", None, "Configuration file, FILE.py[:options]")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; one that holds a run resumes it")
ADDRESS = flags.DEFINE_string(
    "coordinator_address", None, "HOST:PORT of process 0; TPU, Slurm and Open MPI need no such flag"
)
PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes the job has")
PROCESS = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0")


def cache_compilations() -> None:
    """Keeps compiled programs in the user's cache folder, so that a second start is quick."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    if not jax.config.jax_compilation_cache_dir:  # $JAX_COMPILATION_CACHE_DIR wins
        jax.config.update("jax_compilation_cache_dir", str(Path(cache) / "atkd_jax" / "xla"))


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    logging.set_verbosity(logging.ERROR)  # Orbax tells of every file
    cache_compilations()
    try:
        with stop_signal():
            train()
    except Interrupted as stopped:
        hosts.say(f"stopped: {stopped}; the same command goes on from there")
    except KeyboardInterrupt:  # asked for twice
        hosts.leave("stopped at once; the same command goes on from the last checkpoint")
    except Exception as error:
        if on_purpose(error):
            hosts.leave(f"error: {error}")
        if jax.process_count() == 1:
            raise
        hosts.leave(traceback.format_exc())


def train() -> None:
    """Trains, or prints the plan, as the flags say."""
    hosts.connect(ADDRESS.value, PROCESSES.value, PROCESS.value)
    if CONFIG.value.dry_run:
        hosts.say("\n".join(make_plan(CONFIG.value)))
        return
    if not WORKDIR.value:
        raise ValueError("a run needs a folder: add --workdir=DIR")
    result = train_and_evaluate(CONFIG.value, Path(WORKDIR.value))
    hosts.say(
        f"top-1 {result['last']['top1']:.2f} (best {result['best']['top1']:.2f})"
        f" in {result['seconds']:.0f} s; {WORKDIR.value}/summary.json"
    )


def on_purpose(error: Exception) -> bool:
    """Whether an error says in words what to do: so do all ValueErrors that this package raises.

    One that another library raises, at mismatched shapes for instance, is understood by where it
    happened. JAX leaves its own frames out of a traceback, so the last one may still be ours.
    """
    if not isinstance(error, ValueError):
        return isinstance(error, FloatingPointError | OSError)
    last = traceback.extract_tb(error.__traceback__)[-1]
    ours = Path(last.filename).is_relative_to(Path(__file__).parent)
    return ours and last.line.startswith("raise ")


def parse_flags(argv: list[str]) -> list[str]:
    """Reads the flags; a mistake in them, or in a configuration file's options, is one line."""
    try:
        rest = flags.FLAGS(argv)
        if CONFIG.value is not None:
            _ = CONFIG.value.seed  # complains if there is no such file
        return rest
    except (flags.Error, AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        sys.exit(f"error: {one_line(error)}")


def one_line(error: Exception) -> str:
    """The last line of what ml_collections says, of which some holds the repr of another error."""
    text = str(error).replace("\\n", "\n").replace("\\'", "'")
    line = [line.strip() for line in text.splitlines() if line.strip(" '\"")][-1]
    line = re.sub(r"^\w+Error: ", "", line)
    if re.fullmatch(r"['\"\w]+", line):  # the key and nothing else
        key = line.strip("'\"")
        return f"there is no key {key!r} in this part of the configuration"
    return line.removesuffix("'") if line.count("'") % 2 else line


def cli() -> None:
    """The console script `atkd`. The configs folder is found from where the command is typed."""
    sys.path.insert(0, os.getcwd())
    flags.mark_flags_as_required(["config"])
    app.run(main, flags_parser=parse_flags)


if __name__ == "__main__":
    cli()
