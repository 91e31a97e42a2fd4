"""Run all benchmarks or the named ones: ``python -m benchmarks [NAME...]``.

Each can be run by itself, with arguments: ``python -m benchmarks.NAME --help``.
"""

import subprocess
import sys

NAMES = (
    "latency",
    "jobs_rate",
    "rpc",
    "recovery",
    "many_jobs",
    "commands",
    "cpu_per_page",
    "cpu_of_start",
    "large_items",
    "waiting_pages",
)


def main(names: list[str]) -> int:
    """Run each in a process of its own; return the worst exit code."""
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        sys.stderr.write(f"no benchmark {unknown[0]}: there are {', '.join(NAMES)}\n")
        return 2
    codes = [
        subprocess.run(
            [sys.executable, "-m", f"benchmarks.{name}"], check=False
        ).returncode
        for name in names or NAMES
    ]
    return max(map(abs, codes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
