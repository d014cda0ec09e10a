"""requirements.lock holds what constraints.txt pins, every file with its checksum, and names no index."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
LOCKED = (ROOT / "requirements.lock").read_text(encoding="utf-8")
REQUIREMENT = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)((?:.*\\\n)*.*)", re.MULTILINE)


def plain(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def test_versions_are_those_of_the_constraints():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {plain(name): version for name, _, version in (line.partition("==") for line in lines if line)}
    locked = {plain(match[1]): match[2] for match in REQUIREMENT.finditer(LOCKED)}
    assert {name: locked.get(name) for name in pinned} == pinned


def test_every_requirement_of_the_project_is_locked():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    locked = {plain(match[1]) for match in REQUIREMENT.finditer(LOCKED)}
    assert {plain(re.match(r"[\w.-]+", requirement)[0]) for requirement in wanted} <= locked


def test_every_file_has_a_checksum_and_none_a_place():
    for match in REQUIREMENT.finditer(LOCKED):
        assert "--hash=sha256:" in match[3], match[1]
    body = "\n".join(line for line in LOCKED.splitlines() if not line.startswith("#"))
    assert not re.search(r"://|--index-url|--find-links| @ ", body)
