"""The table of scripts/cluster/prove.py."""

from cluster import prove

COMMON = {"collection": "demo, 600 documents", "processes left": 0, "shared memory left": 0, "date": "2026-01-31"}
ALIKE = {
    **COMMON,
    "proof": "identity",
    "command": "python scripts/cluster/prove.py identity",
    "nodes": "namespaces",
    "shards": 16,
    "one process, s": 20.1,
    "two workers, s": 15.2,
    "MB that crossed the network": 0.6,
    "identical": True,
}
KILLED = {
    **COMMON,
    "proof": "kills",
    "command": "python scripts/cluster/prove.py kills",
    "victim": "raylet",
    "kills": 20,
    "runs finished": 9,
    "shards said to be done again": 21,
    "identical": False,
}


def test_proofs_are_written_as_two_tables_and_a_difference_stands_out(tmp_path):
    prove.write(tmp_path, ALIKE)
    prove.write(tmp_path, KILLED)
    prove.write(tmp_path, {**ALIKE, "one process, s": 19.9})  # the same command again takes the place of the first
    lines = (tmp_path / "README.md").read_text("utf-8").splitlines()
    assert "| demo, 600 documents | namespaces | 16 | 19.9 | 15.2 | 0.6 | yes | 0, 0 | 2026-01-31 |" in lines
    assert "| raylet | demo, 600 documents | two | 20 | 9 | 21 | NO | 0, 0 | 2026-01-31 |" in lines
    assert sum(line.startswith("| demo") for line in lines) == 1
    assert "    python scripts/cluster/prove.py kills" in lines
