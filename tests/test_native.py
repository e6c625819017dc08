"""The native library is compiled once; without a compiler everything works without it."""

import subprocess

import pytest

from atkd_jax.nn import native


def test_the_library_is_compiled_once(monkeypatch, tmp_path):
    try:
        subprocess.run(["c++", "--version"], check=True, capture_output=True)
    except OSError:
        pytest.skip("no C++ compiler")
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library = native.build()
    written = library.stat().st_mtime_ns
    assert native.build() == library and library.stat().st_mtime_ns == written
    assert [p.name for p in library.parent.iterdir()] == [library.name]


@pytest.mark.parametrize("compiler", ["/nowhere/c++", "false"])
def test_without_a_compiler_xla_computes(monkeypatch, tmp_path, caplog, compiler):
    monkeypatch.setenv("CXX", compiler)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert native.available.__wrapped__() is False
    assert "$CXX" in caplog.text and compiler in caplog.text
    assert not list(tmp_path.rglob("*.so"))
