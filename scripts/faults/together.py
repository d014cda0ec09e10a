"""Several runs at once that share a cache, of one config or two; some are killed while the cache is cleaned."""

from __future__ import annotations

import random
import time

from trials import COMMANDS, Base, Child, Trials, new_folder, start


def at_once(base: Base, trials: Trials, draw: random.Random) -> None:
    """Start two to four runs and kill none or some, never all; the others must end with the same bytes."""
    while trials.more():
        folder = new_folder(base.folder, "together")
        commands = [draw.choice(list(COMMANDS)) for _ in range(draw.randint(2, 4))]
        children: list[Child] = []
        for number, command in enumerate(commands):
            children.append(start(base.words(command), folder, name=f"said{number}"))
            time.sleep(draw.uniform(0, 0.3))
        remover = start(
            ["cache", "rm", "--yes", "--unused", "--cache-dir", "c", "--results-dir", "r"], folder, name="rm"
        )
        doomed = draw.sample(range(len(children)), draw.randint(0, len(children) - 1))
        for number in doomed:
            time.sleep(draw.uniform(0, 0.5))
            children[number].kill()
        ends = [child.wait() for child in children]
        removed = remover.wait()
        what = f"{' and '.join(commands)} at once, {len(doomed)} killed"
        broken = next((end for number, end in enumerate(ends) if number not in doomed and end.code != 0), None)
        if broken is not None:
            trials.failed(what, broken)
        elif "Traceback" in removed.err:
            trials.failed(f"{what}: cache rm", removed)
        elif all(base.finish(command, folder, trials, what) for command in dict.fromkeys(commands)):
            trials.count("every run that lived ended with the same bytes")
