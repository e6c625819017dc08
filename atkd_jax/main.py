"""Trains a student, or plans its training:

python -m atkd_jax.main --config=configs/cifar10.py:method=kd,pair=r56_r20 --workdir=DIR
"""

from __future__ import annotations

import importlib.machinery
import os
import re
import sys
import traceback
import types
from pathlib import Path

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from atkd_jax import methods
from atkd_jax.command_line import entry_point, usage_error
from atkd_jax.errors import UserError
from atkd_jax.runtime import hosts, run_files, topology
from atkd_jax.runtime.preemption import stop_signal
from atkd_jax.training import settings
from atkd_jax.training.dry_run import describe_plan
from atkd_jax.training.loop import train_and_evaluate

CONFIG = config_flags.DEFINE_config_file("config", None, "Configuration file, FILE.py[:options]")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; one that holds a run resumes it")
ADDRESS = flags.DEFINE_string(
    "coordinator_address", None, "HOST:PORT of process 0; TPU, Slurm and Open MPI need no such flag"
)
PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes the job has")
PROCESS = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0")


def main(argv: list[str]) -> None:
    check_arguments(argv)
    with entry_point(), stop_signal():
        train()


def check_arguments(argv: list[str]) -> None:
    """Ends the command if there is anything on its command line but flags."""
    if len(argv) > 1:
        usage_error(f"unexpected arguments: {' '.join(argv[1:])}")


def train() -> None:
    """Trains, or prints the plan of a dry run."""
    if CONFIG.value is None:
        raise UserError("a run needs a configuration: add --config=configs/FILE.py")
    if CONFIG.value.topology:  # compiles for devices that are not there, without other hosts
        topology.leave_accelerators()
    else:
        hosts.connect(ADDRESS.value, PROCESSES.value, PROCESS.value)
    for line in settings.schedule_warnings(CONFIG.value):
        hosts.log_once(f"warning: {line}")
    if CONFIG.value.dry_run:
        hosts.log_once("\n".join(describe_plan(CONFIG.value)))
        return
    if not WORKDIR.value:
        raise UserError("a run needs a folder: add --workdir=DIR")
    result = train_and_evaluate(CONFIG.value, Path(WORKDIR.value))
    hosts.log_once(
        f"top-1 {result['last']['top1']:.2f} (best {result['best']['top1']:.2f})"
        f" in {result['seconds']:.0f} s; {WORKDIR.value}/summary.json"
    )


class ConfigFile(flags.ArgumentParser):
    """Reads FILE.py[:options]; a file that cannot be used ends the command with one line."""

    def parse(self, path: str) -> ConfigDict:
        file, *options = path.split(":", 1)
        try:
            loader = importlib.machinery.SourceFileLoader("config_file", file)
            module = types.ModuleType(loader.name)
            module.__file__ = file
            sys.modules[loader.name] = module
            loader.exec_module(module)
            if not hasattr(module, "get_config"):
                raise UserError("it has no function get_config")
            config = module.get_config(*options)
            settings.check_keys(config)
        except Exception as error:
            usage_error(f"{where(file, error)}: {why(error)}")
        for name, field in named_terms(sys.argv):
            settings.add_term(config, name, field)
        return config.lock()

    def flag_type(self) -> str:
        return "config object"


flags.FLAGS["config"].parser = ConfigFile()


def where(file: str, error: Exception) -> str:
    """A configuration file and the line at which it failed."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if os.path.abspath(frame.filename) == os.path.abspath(file)
    ]
    if isinstance(error, SyntaxError) and error.filename == file:
        lines.append(error.lineno)
    return f"{file or '--config='}{f', line {lines[-1]}' if lines else ''}"


def why(error: Exception) -> str:
    """The message of an error in one line, with its kind unless the message is enough."""
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    kind = "" if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: "
    return kind + " ".join(text.split())


# --config.terms.NAME.FIELD, as typed, and as `quoted` writes it for ml_collections.
TERM = re.compile(
    r"""(-{1,2}(?:no)?config\.terms)(?:\.|\[")([\w.]+:\w+|\w+)(?:"\])?\.(\w+)(?==|$)"""
)


def named_terms(argv: list[str]) -> list[tuple[str, str]]:
    """(NAME, FIELD) of all overrides of terms."""
    return [(match[2], match[3]) for match in map(TERM.match, argv) if match]


def quoted(arg: str) -> str:
    """Writes terms.MODULE:NAME.FIELD as terms["MODULE:NAME"].FIELD, which ml_collections reads."""
    return TERM.sub(r'\1["\2"].\3', arg) if ":" in arg.partition("=")[0] else arg


def parse_flags(argv: list[str]) -> list[str]:
    """Parses the flags and checks the configuration; a mistake ends the command with one line."""
    sys.argv = argv = [*map(quoted, argv)]  # ml_collections reads sys.argv as well
    try:
        for name, _ in named_terms(argv):  # outside of absl, which would hide a bug in its module
            methods.find(name)
    except UserError as error:
        usage_error(str(error))
    try:
        rest = flags.FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        usage_error(one_line(error))
    try:
        if CONFIG.value is not None:
            settings.check(CONFIG.value)
            run_files.expand_paths(CONFIG.value)
        if WORKDIR.value:
            # absl's stub has no types for setting flags.
            flags.FLAGS.workdir = run_files.expand(WORKDIR.value)  # type: ignore[assignment]
    except UserError as error:
        usage_error(str(error))
    return rest


def one_line(error: Exception) -> str:
    """The last line of an error of ml_collections, which may contain the repr of another error."""
    text = str(error).replace("\\n", "\n").replace("\\'", "'")
    line = [line.strip() for line in text.splitlines() if line.strip(" '\"")][-1]
    line = re.sub(r"^\w+Error: ", "", line)
    if re.fullmatch(r"['\"\w]+", line):  # the key and nothing else
        key = line.strip("'\"")
        return f"there is no key {key!r} in this part of the configuration"
    return line.removesuffix("'") if line.count("'") % 2 else line


def cli() -> None:
    """The console script `atkd`. Configurations are found relative to the current directory."""
    sys.path.insert(0, os.getcwd())
    app.run(main, flags_parser=parse_flags)


if __name__ == "__main__":
    cli()
