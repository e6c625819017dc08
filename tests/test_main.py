"""The command line: what a person reads when a run is stopped, or is asked for by mistake."""

import os
import re
import signal
import socket
import sys

import pytest
from absl import flags

from atkd_jax import main
from atkd_jax.runtime import hosts
from atkd_jax.runtime.preemption import Interrupted

GOOD = "--config=configs/digits.py:method=atkd"


@pytest.fixture
def parse(monkeypatch, capsys):
    """Reads flags as the command does: the configuration, or what it says before it exits."""
    monkeypatch.syspath_prepend(os.getcwd())

    def parse(*arguments):
        for name in [name for name in flags.FLAGS if name.startswith("config.")]:
            delattr(flags.FLAGS, name)
        flags.FLAGS["config"].unparse()
        monkeypatch.setattr(sys, "argv", ["main", *arguments])
        try:
            main.parse_flags(sys.argv)
        except SystemExit as ended:
            assert ended.code == 2
            [line] = capsys.readouterr().err.splitlines()
            assert line.startswith("error: ")
            return line.removeprefix("error: ")
        return main.CONFIG.value

    yield parse
    for name in [name for name in flags.FLAGS if name.startswith("config.")]:
        delattr(flags.FLAGS, name)
    flags.FLAGS["config"].unparse()


HEAD = "from configs import common\n\ndef get_config(_):\n    config = common.get_config()\n"
FILES = {  # what it holds, and the line: Python's own words are not held to
    "raises": ("def get_config(_):\n    return 1 / 0\n", ", line 2: ZeroDivisionError: division"),
    "raises below": (
        HEAD + "    return config.bach_size\n",
        ", line 5: AttributeError: .*batch_size",
    ),
    "raises twice": (
        "def get_config(_):\n    try:\n        {}['a']\n    except KeyError:\n"
        "        raise ValueError('two\\nlines')\n",
        ", line 5: two lines$",
    ),
    "imports": ("import os\nimport nowhere\n", ", line 2: ModuleNotFoundError: .*nowhere"),
    "is no Python": ("x = 1\ndef get_config(:\n", ", line 2: SyntaxError: "),
    "is binary": (b"\x00\x01\xff\xfe", ".*: SyntaxError: "),
    "is no UTF-8": ("x = 'é'".encode("latin1"), ".*: SyntaxError: .*utf-8"),
    "has no function": ("x = 1\n", ": it has no function get_config$"),
    "takes no options": ("def get_config(): pass\n", ": TypeError: .*0 positional arguments"),
    "returns nothing": (
        "def get_config(_): pass\n",
        ": the configuration is of type NoneType, not",
    ),
    "returns a dict": (
        "def get_config(_): return {}\n",
        ": the configuration is of type dict, not",
    ),
    "lacks a section": (
        HEAD + "    del config.teacher\n    return config\n",
        ": the configuration has no key teacher; start from get_config() of configs/common.py$",
    ),
    "lacks keys": (
        "from ml_collections import ConfigDict\n\ndef get_config(_):\n"
        "    return ConfigDict(dict(seed=1, student='resnet8'))\n",
        ": the configuration has no key data; start from",
    ),
    "has other keys": (
        HEAD + "    config.bach_size = 3\n    return config\n",
        ": unknown key of the configuration 'bach_size'; did you mean 'batch_size'?",
    ),
    "gives another type": (HEAD + "    config.epochs = '3'\n", ", line 5: TypeError: .*epochs"),
}


@pytest.mark.parametrize("case", FILES)
@pytest.mark.parametrize("override", [(), ("--config.epochs=3",)], ids=["alone", "overridden"])
def test_a_file_that_cannot_be_used_is_named_with_the_line_and_the_reason(
    case, override, parse, tmp_path
):
    content, message = FILES[case]
    path = tmp_path / "mine.py"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    line = parse(f"--config={path}:a=b", *override)
    assert re.match(re.escape(str(path)) + message.replace("()", r"\(\)"), line), line


def test_a_file_that_is_not_there_is_named(parse, tmp_path):
    assert parse("--config=configs/cifar10") == (
        "configs/cifar10: [Errno 2] No such file or directory: 'configs/cifar10'"
    )
    assert parse(f"--config={tmp_path}") == f"{tmp_path}: [Errno 21] Is a directory: '{tmp_path}'"
    assert parse("--config=").startswith("--config=: [Errno 2] No such file or directory")


def test_a_misspelt_option_is_told_the_nearest(parse):
    for option, near in (("methd=kd", "method"), ("method=kdd", "kd")):
        line = parse(f"--config=configs/digits.py:{option}")
        assert line.startswith("configs/digits.py, line ") and f"did you mean '{near}'?" in line


@pytest.mark.parametrize(
    "override, message",
    [
        ("epochs=two", "flag --config.epochs=two: invalid literal"),
        ("epochs=2.5", "flag --config.epochs=2.5: invalid literal"),
        ("epochs=0", "epochs 0 is not a whole number from 1 to 2147483647"),
        ("epochs=2147483648", "epochs 2147483648 is not a whole number"),
        ("seed=-1", "seed -1 is not a whole number from 0"),
        ("optimizer.lr=nan", "optimizer.lr nan is not a number in (0, inf)"),
        ("optimizer.lr=-0.1", "optimizer.lr -0.1 is not a number in (0, inf)"),
        ("optimizer.betas=0.9", "optimizer.betas (0.9,) is not a tuple of 2, each"),
        ("optimizer={}", "the configuration has no key optimizer.name"),
        ("schedule.milestones=('a',)", "schedule.milestones ('a',) is not a tuple, each a number"),
        ("schedule.milestones=(1,", "flag --config.schedule.milestones=(1,: Error while parsing"),
        ("schedule.warmup_epochs=inf", "schedule.warmup_epochs inf is not a number in [0, inf)"),
        ("teacher.expect_top1=nan", "teacher.expect_top1 nan is not a number in [0, 100]"),
        ("teacher=5", "flag --config.teacher=5: Failed to parse '5' as a ConfigDict"),
        ("terms.kd=5", "flag --config.terms.kd=5: Failed to parse '5' as a ConfigDict"),
        ("terms.kd.temperature=0", "terms.kd.temperature 0.0 is not a number in (0, inf)"),
        ("terms.kd.temprature=3", 'Did you mean "temperature" instead of "temprature"'),
        ("terms.self_attention.heads=0", "terms.self_attention.heads 0 is not a whole number"),
        ("terms.self_attention.scale=sqrt", "terms.self_attention.scale 'sqrt' is not a number in"),
        ("foo.bar=1", "there is no key 'foo' in this part of the configuration"),
    ],
)  # fmt: skip
def test_an_override_that_cannot_be_is_one_line(override, message, parse):
    line = parse(GOOD, f"--config.{override}")
    assert line.startswith(message), line


def test_a_value_that_is_left_open_has_to_be_given(parse, tmp_path):
    (tmp_path / "open.py").write_text(
        "from configs import common\nfrom ml_collections import config_dict\n\n"
        "def get_config():\n    config = common.get_config()\n"
        "    config.epochs = config_dict.placeholder(int)\n"
        "    return config\n"
    )
    assert parse(f"--config={tmp_path}/open.py") == (
        "epochs None is not a whole number from 1 to 2147483647"
    )
    assert parse(f"--config={tmp_path}/open.py", "--config.epochs=3").epochs == 3


@pytest.mark.parametrize(
    "text, scale", [("sqrt_d", "sqrt_d"), ("20", 20), ("5.5", 5.5), (None, 1.0)]
)
def test_the_scale_of_self_attention_is_a_number_or_a_name(text, scale, parse):
    override = [f"--config.terms.self_attention.scale={text}"] if text else []
    config = parse(GOOD, *override)
    assert config.to_dict()["terms"]["self_attention"]["scale"] == scale
    assert parse(GOOD).terms.self_attention.scale == 1.0  # it belongs to one configuration


def test_without_flags_there_is_nothing_to_complain_of(parse):
    assert parse() is None


def test_a_run_needs_a_configuration(parse):
    parse()
    with pytest.raises(SystemExit, match="^error: a run needs a configuration: add --config="):
        main.main(["main"])


def test_what_is_no_flag_is_named(capsys):
    with pytest.raises(SystemExit, match="2"):
        main.main(["main", "a", "b"])
    assert capsys.readouterr().err == "error: unexpected arguments: a b\n"


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_schedule_that_is_cut_off_is_told_before_the_run_or_its_plan(
    dry_run, parse, monkeypatch, capsys
):
    def act(config, *_):
        print("acts")
        raise ValueError("and stops")

    monkeypatch.setattr(main.hosts, "connect", lambda *_: None)
    for name in ("describe_plan", "train_and_evaluate"):
        monkeypatch.setattr(main, name, act)
    parse(
        "--config=configs/cifar10.py:method=kd",
        "--workdir=nowhere",
        "--config.epochs=3",
        f"--config.dry_run={dry_run}",
    )
    with pytest.raises(ValueError, match="and stops"):
        main.train()
    warning, then = capsys.readouterr().out.splitlines()
    assert warning.startswith(
        "warning: schedule.milestones (150, 180, 210) lie beyond epochs=3: the learning rate never"
    )
    assert then == "acts"


def test_a_slice_to_compile_for_needs_no_accelerator_and_no_other_host(parse, monkeypatch):
    did: list[str] = []
    monkeypatch.setattr(main.hosts, "connect", None)
    monkeypatch.setattr(main.hosts, "log_once", did.append)
    monkeypatch.setattr(main.topology, "leave_accelerators", lambda: did.append("left"))
    monkeypatch.setattr(main, "describe_plan", lambda config: [config.topology])
    parse("--config=configs/imagenet.py", "--config.dry_run=True", "--config.topology=v5e:4x8")
    main.train()
    assert did == ["left", "v5e:4x8"]


@pytest.mark.parametrize(
    "given, message",
    [
        (("localhost", 2, 0), "--coordinator_address=localhost is not HOST:PORT"),
        ((":1234", 2, 0), "--coordinator_address=:1234 is not HOST:PORT"),
        (("localhost:0", 2, 0), "--coordinator_address=localhost:0 is not HOST:PORT with a port"),
        (("localhost:65536", 2, 0), "=localhost:65536 is not HOST:PORT"),
        (("localhost:x", 2, 0), "=localhost:x is not HOST:PORT"),
        (("a..b:1234", 2, 1), "--coordinator_address=a..b:1234 cannot be used: "),
        (("localhost:1234", 0, 0), "--num_processes 0 is not a whole number from 1"),
        (("localhost:1234", -1, 0), "--num_processes -1 is not"),
        (("localhost:1234", 2, 2), "--process_id 2 is not a whole number from 0 to 1"),
        (("localhost:1234", 2, -1), "--process_id -1 is not a whole number from 0 to 1"),
    ],
)
def test_a_job_that_cannot_be_is_refused_before_anyone_waits(given, message):
    with pytest.raises(ValueError) as told:
        hosts.connect(*given)
    assert message in str(told.value) and "\n" not in str(told.value)


def test_a_port_in_use_is_named():
    """JAX would crash."""
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"localhost:{port} cannot be used: "):
            hosts.connect(f"localhost:{port}", 2, 0)
        hosts.check_flags(f"localhost:{port}", 2, 1)  # others connect to it


def send(*numbers):
    for number in numbers:
        os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_stopped_before_its_first_step_ends_with_one_line(
    number, monkeypatch, capsys
):
    monkeypatch.setattr(main, "train", lambda: send(number))
    with pytest.raises(SystemExit, match="0"):
        main.main(["main"])
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith("stopped: ") and line.endswith("the same command goes on from there")


def test_a_second_interrupt_ends_with_one_line(monkeypatch):
    def train():
        try:
            send(signal.SIGINT)
        except Interrupted:
            send(signal.SIGINT)

    monkeypatch.setattr(main, "train", train)
    with pytest.raises(SystemExit) as ended:
        main.main(["main"])
    assert ended.value.code == (
        "stopped at once; the same command goes on from the last checkpoint"
    )


# Terms that the preset lacks


def test_a_term_can_be_added_with_its_defaults(parse):
    config = parse("--config=configs/digits.py:method=none", "--config.terms.kd.weight=0.5")
    assert config.terms.to_dict() == {"kd": {"temperature": 4.0, "weight": 0.5}}
    config = parse(GOOD, "--config.terms.kd.warmup_epochs=2", "--config.terms.at.weight=1")
    assert config.terms.kd.to_dict() == {"temperature": 4.0, "weight": 0.9, "warmup_epochs": 2.0}
    assert config.terms["at"].to_dict() == {"taps": (), "variant": "code", "weight": 1.0}
    assert set(parse(GOOD).terms) == {"kd", "self_attention"}


OWN = """
import dataclasses
from atkd_jax import LossOut, Method

@dataclasses.dataclass(frozen=True)
class Mine(Method):
    least: float
    power: float = 2.0
    kind: float | str = "all"

    def loss(self, extras, t, s, batch, ctx):
        return LossOut((abs(s.logits - t.logits) ** self.power).mean())

@dataclasses.dataclass(frozen=True)
class Taken(Mine):
    least: float = 1.0
    warmup_steps: int = 5

def function():
    pass
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The name of a module of the user's own."""
    (tmp_path / "my_losses.py").write_text(OWN)
    (tmp_path / "my_bug.py").write_text("import dataclasses\n\n1 / 0\n")
    (tmp_path / "my_import.py").write_text("import nowhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "my_losses"
    sys.modules.pop("my_losses", None)


def test_a_method_may_live_in_a_file_of_the_users_own(parse, own):
    config = parse(
        GOOD,
        "--config.terms.my_losses:Mine.weight=2",
        "--config.terms.my_losses:Mine.least=1.5",
        "--config.terms.my_losses:Mine.kind=3",
    )
    fields = {"least": 1.5, "power": 2.0, "kind": 3, "weight": 2.0}
    assert config.terms.to_dict()["my_losses:Mine"] == fields


@pytest.mark.parametrize(
    "override, message",
    [
        ("kdd.weight=1", "unknown method 'kdd'; did you mean 'kd'?"),
        ("at.variant=paper", "terms.at has no weight; add one, such as terms.at.weight=1"),
        ("at.wait=1", "there is no key 'wait'"),
        ("my_loses:Mine.weight=1", "there is no module my_loses for the method my_loses:Mine"),
        ("my_losses:Min.weight=1", "my_losses.py has no Min, which is to be a method"),
        ("my_losses:function.weight=1", "is no subclass of atkd_jax.Method"),
        ("my.losses:Mine.weight=1", "'my.losses:Mine' names no method; name one as MODULE:NAME"),
        ("my_losses:Mine.weight=1", "terms.my_losses:Mine.least has no default; give it a value"),
        (
            "my_losses:Taken.weight=1",
            "Taken has a field warmup_steps, which is a key of every term",
        ),
        ("my_losses:Mine.powr=1", 'Did you mean "power" instead of "powr"'),
        ("my_losses:Mine.power=two", "flag --config.terms"),
    ],
)
def test_a_term_that_cannot_be_added_is_one_line(override, message, parse, own):
    assert message in parse(GOOD, f"--config.terms.{override}")


@pytest.mark.parametrize(
    "name, error", [("my_bug:Mine", ZeroDivisionError), ("my_import:Mine", ModuleNotFoundError)]
)
def test_a_bug_in_the_users_own_file_keeps_its_traceback(name, error, parse, own):
    with pytest.raises(error):
        parse(GOOD, f"--config.terms.{name}.weight=1")
