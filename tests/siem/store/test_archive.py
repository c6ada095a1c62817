"""The temporary folders of readers of events."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

_LOOKS = """
import os, signal, sys
from pathlib import Path
from siem.store.archive import MEMORY_LIMIT, Looking
looking = Looking(Path(sys.argv[1]), MEMORY_LIMIT)
print(looking.place, flush=True)
if sys.argv[2:]:
    os.kill(os.getpid(), signal.SIGKILL)
sys.stdin.read()
looking.close()
"""


def test_the_pieces_of_a_killed_process_go_with_the_next_look_and_those_of_a_living_one_stay(
    tmp_path: Path,
) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    (temporary / "cityward-look-elsewhere").symlink_to(tmp_path)

    def start(*how: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", _LOOKS, str(tmp_path), *how],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": str(temporary)},
        )

    def place(process: subprocess.Popen[str]) -> Path:
        assert process.stdout is not None
        return Path(process.stdout.readline().strip())

    with start("killed") as killed:
        left = place(killed)
    was_left = left.is_dir()
    with start() as living:
        kept = place(living)
        with start() as after:
            stands = [left.exists(), kept.is_dir(), place(after).is_dir()]
            after.communicate("")
        living.communicate("")

    assert was_left
    assert killed.returncode == -signal.SIGKILL
    assert stands == [False, True, True]
    assert [one.name for one in temporary.iterdir()] == ["cityward-look-elsewhere"]
