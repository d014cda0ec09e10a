"""Where numba keeps what it compiles when it finds no folder of its own."""

import os

import pytest

from evalkit.kernels.cpu import numba_folder


@pytest.fixture
def folders(monkeypatch):
    """Stand in for numba without a folder: loading fails until one is named."""
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setattr("numba.core.config.reload_config", lambda: None)
    monkeypatch.setattr(numba_folder, "_fallback", [])

    def load():
        if "NUMBA_CACHE_DIR" not in os.environ:
            raise RuntimeError("cannot cache function 'f': no locator available for file 'f.py'")
        return os.environ["NUMBA_CACHE_DIR"]

    yield load
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)


def test_the_folder_that_a_run_names_is_made_and_used(folders, tmp_path):
    numba_folder.set_fallback(tmp_path / "cache" / "numba")
    assert numba_folder.with_cache_folder(folders) == str(tmp_path / "cache" / "numba")
    assert (tmp_path / "cache" / "numba").is_dir()


def test_a_folder_that_cannot_be_made_is_replaced_by_a_temporary_one(folders, tmp_path):
    (tmp_path / "file").write_text("", "utf-8")
    numba_folder.set_fallback(tmp_path / "file" / "numba")
    assert "evalkit-numba-" in numba_folder.with_cache_folder(folders)
