"""Pause runs just before they rename a chosen file, so that a test does not depend on the machine's speed.

with held_run(["run", ...], tmp_path, before="topk/*/*.json", count=2) as process:
    ...  # one top-k list is finished; the second is written, but its manifest is missing
"""

import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

POLL_S = 0.01


@contextmanager
def held_run(words, folder, *, before, count, **options):
    """Start `evalkit` with these words and yield its process once it is paused; at the end it is killed.

    The run pauses before it renames the `count`-th file whose path matches the pattern `before`. The files of the
    handshake are in `folder`. `go_on(folder)` lets the run continue.
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
    """Let a paused run continue."""
    (folder / "go").touch()


def _hold(before, count, folder):
    """Make `publish`, by which evalkit renames every finished file, wait for the test at one of them."""
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

    paths.publish = held  # before another module imports it


if __name__ == "__main__":
    pattern, number, place = sys.argv[1:4]
    _hold(pattern, int(number), Path(place))
    from evalkit.cli import main

    sys.argv[1:] = sys.argv[4:]
    main()
