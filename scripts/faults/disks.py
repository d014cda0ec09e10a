"""Full disks (small tmpfs mounts), read-only mounts, and folders that vanish during a run."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from trials import COMMANDS, Base, Done, Trials, forked, new_folder

PAGE = 4096
HELD = {"c": "cache", "r": "results"}
ROOM = "64m"


@contextmanager
def mounted(folder: Path, size: str) -> Iterator[None]:
    """Mount a tmpfs of this size on a folder. Raises PermissionError if mounting fails."""
    folder.mkdir(parents=True, exist_ok=True)
    made = mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder))
    if made:
        raise PermissionError(made)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False, capture_output=True)


def mount(*words: str) -> str:
    """Call mount; return its error message, or an empty string."""
    done = subprocess.run(["mount", *words], check=False, capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stderr.strip() or "mount failed"


def used(base: Base, command: str) -> dict[str, int]:
    """Return the bytes that an undisturbed run writes to the cache and to the results, rounded up to pages."""
    folder = base.folder / f"undisturbed-{command}"
    return {
        part: sum(-(-path.stat().st_size // PAGE) * PAGE for path in (folder / part).rglob("*") if path.is_file())
        for part in HELD
    }


def full(base: Base, trials: Trials, draw: random.Random) -> None:
    """Run on disks of every size up to what is needed: it must fail with one line, and succeed once there is room."""
    sizes = {command: used(base, command) for command in COMMANDS}
    choices = [
        (command, part, size)
        for command in COMMANDS
        for part in HELD
        for size in range(PAGE, sizes[command][part] + 4 * PAGE, PAGE)
    ]
    draw.shuffle(choices)
    for command, part, size in choices:
        if not trials.more():
            trials.note = f"{trials.tried} of {len(choices)} sizes"
            return
        folder = new_folder(base.folder, "disk")
        what = f"{command} with {size:,} bytes for its {HELD[part]}"
        try:
            with mounted(folder / part, str(size)):
                done = forked(base.words(command), folder)
                if done.code == 0:
                    other = base.same(command, folder)
                    trials.count("had room enough, or did without") if other is None else trials.failed(
                        f"{what}: {other}"
                    )
                    continue
                if done.refusal() is None:
                    trials.failed(f"{what}: no clean refusal", done)
                    continue
                mount("-o", f"remount,size={ROOM}", str(folder / part))
                if base.finish(command, folder, trials, what):
                    trials.count("refused in one line; with room the same bytes")
        except PermissionError as error:
            trials.note = f"skipped: {error}"
            return


def read_only(base: Base, trials: Trials, draw: random.Random) -> None:
    """Make the cache or the results read-only before a run, or at one of its writes."""
    while trials.more():
        command, part, at = draw.choice(list(COMMANDS)), draw.choice(list(HELD)), draw.choice([0, 0, 1, 2, 3, 5, 8])
        folder = new_folder(base.folder, "read-only")
        what = f"{command} with read-only {HELD[part]} from write {at} on"
        try:
            with mounted(folder / part, ROOM):
                place = folder / part

                def refuse(place: Path = place) -> None:
                    mount("-o", "remount,ro", str(place))

                if at == 0:
                    refuse()
                done = forked(base.words(command), folder, before=None if at == 0 else at_write(at, refuse))
                mount("-o", f"remount,rw,size={ROOM}", str(place))
                judge(base, trials, command, folder, what, done)
        except PermissionError as error:
            trials.note = f"skipped: {error}"
            return


def vanishing(base: Base, trials: Trials, draw: random.Random) -> None:
    """Remove the cache, a folder in it, the results or the collection during a run, at one of its writes."""
    parts = ["c", "c/topk", "c/stores", "c/surveys", "c/jobs", "r", "r/runs", "the collection"]
    while trials.more():
        command, part, at = draw.choice(list(COMMANDS)), draw.choice(parts), draw.randint(1, 10)
        folder = new_folder(base.folder, "vanishing")
        copied = folder / "collection"
        shutil.copytree(base.data, copied)
        words = [f"dataset.path={copied}" if word.startswith("dataset.path=") else word for word in base.words(command)]
        words += ["dataset.name=folder/data"]
        place = copied if part == "the collection" else folder / part

        def vanish(place: Path = place) -> None:
            shutil.rmtree(place, ignore_errors=True)

        done = forked(words, folder, before=at_write(at, vanish))
        judge(base, trials, command, folder, f"{command} whose {part} vanishes before write {at}", done)


def at_write(number: int, act: Callable[[], None]) -> Callable[[], None]:
    """Return a patch that calls `act` just before the `number`-th write."""

    def patch() -> None:
        from evalkit.storage import paths, shard_files

        publish, met = paths.publish, [0]

        def acting(unfinished: Path, path: Path) -> None:
            met[0] += 1
            if met[0] == number:
                act()
            publish(unfinished, path)

        paths.publish = shard_files.publish = acting  # type: ignore[attr-defined]  # imported there by name

    return patch


def judge(base: Base, trials: Trials, command: str, folder: Path, what: str, done: Done) -> None:
    """Count a disturbed run. It must succeed or fail with one line; running it again must give the same bytes."""
    if done.code == 0:
        other = base.same(command, folder)
        gone = other is not None and not (folder / "r" / "runs").is_dir()
        if other is not None and not gone:
            trials.failed(f"{what}: exit 0, but {other}", done)
            return
    elif done.refusal() is None:
        trials.failed(f"{what}: no clean refusal", done)
        return
    if base.finish(command, folder, trials, what):
        trials.count("done without it" if done.code == 0 else "refused in one line; then the same bytes")
