"""Read inputs with a few randomly changed bytes with every reader; fuzz.py does the same guided by coverage."""

from __future__ import annotations

import itertools
import logging
import random
import time

from fuzz import SLOW_S, place_of
from readers import readers
from trials import Trials

ODD = (
    b"\0",
    b"\xff",
    b"\n",
    b"\t",
    b'"',
    b"{",
    b"[",
    b"9" * 30,
    b"1e999",
    b"-",
    b"NaN",
    b"\\ud800",
    b"../",
    b"\x1b[2J",
    b"null",
)


def changed(data: bytes, draw: random.Random) -> bytes:
    """Return bytes with one to four changes: a flipped bit, removed, repeated or unusual bytes."""
    found = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        place = draw.randrange(len(found) + 1)
        end = min(len(found), place + draw.randint(1, 8))
        kind = draw.randrange(5)
        if kind == 0 and place < len(found):
            found[place] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del found[place:end]
        elif kind == 2:
            found[place:place] = found[place:end]
        elif kind == 3:
            found[place:end] = draw.choice(ODD)
        else:
            found[place:place] = draw.choice(ODD)
    return bytes(found)


def scrambled(trials: Trials, draw: random.Random) -> None:
    """Give each reader in turn changed seeds, until the time is over."""
    logging.disable(logging.CRITICAL)
    places: set[str] = set()
    known = [reader for reader in readers().values() if reader.name != "words"]  # a call takes a quarter of a second
    for reader in known:
        for data in reader.seeds:
            reader.check(data)  # imports the reader's modules, which takes seconds
    for reader in itertools.cycle(known):
        if not trials.more():
            break
        until = time.monotonic() + 0.2
        while time.monotonic() < until:
            data = changed(draw.choice(reader.seeds), draw)
            started = time.process_time()
            try:
                trials.count(reader.check(data))
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:  # noqa: BLE001 (panics of Rust code derive from BaseException)
                place = f"{reader.name}: {place_of(error)}"
                trials.count("BROKEN")
                if place not in places:
                    places.add(place)
                    trials.wrong.append(f"{place}: {str(error)[:200]!r} for {data[:200]!r}")
            if time.process_time() - started > SLOW_S:
                trials.wrong.append(f"{reader.name}: slow for {data[:200]!r}")
    logging.disable(logging.NOTSET)
