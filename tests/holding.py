"""Runs that wait for a test: held just before a file is put in place, so that no machine is too fast or too slow.

with held_run(["run", ...], tmp_path, before="topk/*/*.json", count=2) as process:
    ...  # one top-k list is finished, the second is written but lacks its manifest
"""

import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

POLL_S = 0.01


@contextmanager
def held_run(words, folder, *, before, count, **options):
    """Start `evalkit` with some words and yield its process once it is held; whatever is left of it is killed.

    The run stops before it renames the `count`-th file whose path ends in the pattern `before`. Files of the handshake
    are in `folder`. `go_on(folder)` lets the run continue.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("held", "go"):
        (folder / name).unlink(missing_ok=True)
    command = [sys.executable, "-P", __file__, before, str(count), str(folder), *map(str, words)]
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, **silent, **options)
    try:
        while not (folder / "held").exists():
            if process.poll() is not None:
                raise AssertionError(f"the run ended before {count} of {before}: {process.stderr.read()}")
            time.sleep(POLL_S)
        yield process
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def go_on(folder):
    """Let a held run continue."""
    (folder / "go").touch()


def _hold(before, count, folder):
    """Make evalkit's only way to put a file in place wait for the test at one of the files."""
    from evalkit.storage import paths

    publish, met = paths.publish, []

    def held(unfinished, path):
        if path.match(before):
            met.append(path)
            if len(met) == count:
                (folder / "held").touch()
                while not (folder / "go").exists():
                    time.sleep(POLL_S)
        publish(unfinished, path)

    paths.publish = held  # before any other module takes it from there


if __name__ == "__main__":
    pattern, number, place = sys.argv[1:4]
    _hold(pattern, int(number), Path(place))
    from evalkit.cli import main

    sys.argv[1:] = sys.argv[4:]
    main()
