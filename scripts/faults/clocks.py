"""A clock that goes back: during a run, and between runs, so that files have times in the future."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable

from trials import COMMANDS, Base, Trials, forked, new_folder

DAY_S = 86_400


def stepping(draw_seed: int, step_s: float) -> Callable[[], None]:
    """Return a patch that sets the clock back by a random time of up to `step_s` at each reading."""

    def patch() -> None:
        draw = random.Random(draw_seed)
        real, real_ns = time.time, time.time_ns
        time.time = lambda: real() + draw.uniform(-step_s, 0)
        time.time_ns = lambda: real_ns() - int(draw.uniform(0, step_s) * 1e9)

    return patch


def back(base: Base, trials: Trials, draw: random.Random) -> None:
    """Kill a run, change the times of its files by years, and finish it under a clock that jumps back."""
    from kills import WRITES, dies

    while trials.more():
        command = draw.choice(list(COMMANDS))
        folder = new_folder(base.folder, "clock")
        forked(base.words(command), folder, before=dies(WRITES["top-k's manifest"], "written", 2))
        for path in folder.rglob("*"):
            moment = time.time() + draw.uniform(-3000, 3000) * DAY_S
            os.utime(path, (moment, moment))
        done = forked(
            base.words(command),
            folder,
            before=stepping(draw.randrange(1 << 30), draw.choice([1, 3600, 10 * 365 * DAY_S])),
        )
        what = f"{command} under a clock that goes back"
        if done.code != 0:
            trials.failed(what, done)
        elif (other := base.same(command, folder)) is not None:
            trials.failed(f"{what}: {other}", done)
        elif base.finish(command, folder, trials, what):
            status = forked(
                ["status", "results_dir=r", "cache_dir=c"], folder, before=stepping(draw.randrange(1 << 30), DAY_S)
            )
            trials.count("the same bytes") if status.code == 0 else trials.failed(f"{what}: status", status)
