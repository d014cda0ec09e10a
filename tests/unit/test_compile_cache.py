"""Where numba and Triton keep what they compile when they have no folder of their own."""

import os

import pytest

from evalkit.kernels import compile_cache


@pytest.fixture
def folders(monkeypatch):
    """Stand in for numba without a folder: loading fails until one is named."""
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setattr("numba.core.config.reload_config", lambda: None)
    monkeypatch.setattr(compile_cache, "_fallback", [])

    def load():
        if "NUMBA_CACHE_DIR" not in os.environ:
            raise RuntimeError("cannot cache function 'f': no locator available for file 'f.py'")
        return os.environ["NUMBA_CACHE_DIR"]

    yield load
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)


def test_the_folder_that_a_run_names_is_made_and_used(folders, tmp_path):
    compile_cache.set_fallback(tmp_path / "cache")
    assert compile_cache.with_cache_folder(folders) == str(tmp_path / "cache" / "numba")
    assert (tmp_path / "cache" / "numba").is_dir()


def test_a_folder_that_cannot_be_made_is_replaced_by_a_temporary_one(folders, tmp_path):
    (tmp_path / "file").write_text("", "utf-8")
    compile_cache.set_fallback(tmp_path / "file")
    assert "evalkit-numba-" in compile_cache.with_cache_folder(folders)


@pytest.mark.parametrize(
    ("home", "kept"),
    [("file", "cache/triton"), ("new/home", None), ("~", "cache/triton")],
    ids=["a file", "a folder to be made", "no home"],
)
def test_triton_compiles_below_cache_dir_where_its_own_folder_cannot_be_made(home, kept, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("", "utf-8")
    monkeypatch.setenv("TRITON_CACHE_DIR", "")  # so that it is restored
    monkeypatch.delenv("TRITON_CACHE_DIR")
    monkeypatch.setenv("TRITON_HOME", home if home == "~" else str(tmp_path / home))
    monkeypatch.setattr(compile_cache, "_fallback", [])
    compile_cache.set_fallback(tmp_path / "cache")
    assert os.environ.get("TRITON_CACHE_DIR") == (kept and str(tmp_path / kept))


def test_a_folder_that_the_user_names_for_triton_stays(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("", "utf-8")
    monkeypatch.setenv("TRITON_HOME", str(tmp_path / "file"))
    monkeypatch.setenv("TRITON_CACHE_DIR", "/chosen")
    monkeypatch.setattr(compile_cache, "_fallback", [])
    compile_cache.set_fallback(tmp_path / "cache")
    assert os.environ["TRITON_CACHE_DIR"] == "/chosen"


def test_the_folder_of_triton_is_the_one_that_triton_names(monkeypatch):
    triton = pytest.importorskip("triton")
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    assert str(compile_cache.triton_folder()) == triton.knobs.cache.dir
