"""Kill a worker and the launcher of a study, resume it, and count what was lost or trained twice.

    python experiments/grid_kills.py compare --methods ce,kd --seeds 0,1 --jobs 2 --out OUT ...

The arguments are a new study. After a quarter of its cells a worker is killed, after half of them the launcher. Then
the same command runs again. A finished cell that is trained again has another manifest.
"""

import csv
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil

_MANIFESTS = "e*/seed*/*/distill/manifest.json"


def _manifests(out: Path) -> dict[str, int]:
    """Return the time of the manifest of each finished cell."""
    return {str(path.parents[1].relative_to(out)): path.stat().st_mtime_ns for path in out.glob(_MANIFESTS)}


def _in_training(launcher: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return the processes of a launcher that are in an epoch of a cell."""
    found = []
    for child in psutil.Process(launcher.pid).children():
        with suppress(psutil.Error, ValueError, IndexError):
            words = child.cmdline()
            if (Path(words[words.index("--out") + 1]) / ".distill.partial").exists():
                found.append(child)
    return found


def main() -> None:
    """Run the study and print the counts."""
    command = [sys.executable, "-m", "kdedge", *sys.argv[1:]]
    out = Path(sys.argv[sys.argv.index("--out") + 1])
    printed = subprocess.run([*command, "--launcher", "print"], check=True, stdout=subprocess.PIPE, text=True)
    cells, start, kills = len(printed.stdout.splitlines()), time.monotonic(), []
    seen: dict[str, int] = {}
    twice = set()
    launcher = subprocess.Popen(command, stdout=subprocess.DEVNULL, text=True)
    while launcher.poll() is None:
        now = _manifests(out)
        twice |= {cell for cell, made in now.items() if seen.get(cell, made) != made}
        seen |= now
        if not kills and len(seen) >= cells // 4 and (workers := _in_training(launcher)):
            workers[0].kill()
            kills.append(f"a worker after {len(seen)} cells")
        elif len(kills) == 1 and len(seen) >= cells // 2 and (workers := _in_training(launcher)):
            launcher.kill()
            launcher.wait()
            kills.append(f"the launcher after {len(seen)} cells, with {len(workers)} cells in training")
            launcher = subprocess.Popen(command, stdout=subprocess.DEVNULL, text=True)
        time.sleep(0.05)
    made = _manifests(out)
    twice |= {cell for cell, time_ns in made.items() if seen.get(cell, time_ns) != time_ns}
    with (out / "evaluation_results.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    print(f"exit code {launcher.returncode} after {time.monotonic() - start:.0f} s; killed: {'; '.join(kills)}")
    print(f"cells: {cells}; finished: {len(made)}; rows of the table: {len(rows)}; trained twice: {len(twice)}")
    logs = [path.read_text(encoding="utf-8").splitlines() for path in out.glob("e*/seed*/*/distill/training_log_*.csv")]
    print(f"epochs in the {len(logs)} training logs: {sum(len(lines) - 1 for lines in logs)}")


if __name__ == "__main__":
    main()
