"""Try thousands of damaged files on everything in the pack that reads files, and say what was not refused in one sentence.

    python tests/fuzz/run.py [--count 10000] [--seed 0] [--only weights,dataset] [--case SEED:TARGET:NUMBER] [--workers N]

With any Python: ComfyUI is found, or set up, as scripts/test.py does. Systems without fork and /proc are left out. The exit
status is 1 where a case ended in anything but success or one sentence.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# A script's own folder comes first by itself, and its modules have names that others have too.
sys.path[:] = [entry for entry in sys.path if Path(entry or os.curdir).resolve() != Path(__file__).resolve().parent]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "golden"), str(ROOT / "scripts")]
INSIDE = "NEXTCONTROL_FUZZ_TOOLS"
"""Set where this runs in the host's Python; where the packages for tests are."""


def main(arguments: list[str]) -> int:
    """Find the host, or fuzz in it."""
    options = parse(arguments)
    if INSIDE in os.environ:
        return fuzz(options)
    from host import find_host
    from provide import SetupError, say
    from test import find_tools

    try:
        host = find_host()
        tools = find_tools(host)
    except SetupError as error:
        say(f"run.py: {error}")
        return 1
    environment = os.environ | {
        INSIDE: str(tools), "NEXTCONTROL_COMFYUI": str(host.comfyui), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip
    return subprocess.run([host.python, __file__, *arguments], env=environment, check=False).returncode


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    from fuzz.campaign import SHARES

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000, help="cases of all targets together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=",".join(SHARES), help="targets with commas between them; default: %(default)s")
    parser.add_argument("--case", help="SEED:TARGET:NUMBER of one case, with its whole messages")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--faults", type=Path, help="a file for all faults, as JSON")
    options = parser.parse_args(arguments)
    options.only = [name.strip() for name in options.only.split(",")]
    if options.case:
        seed, target, number = options.case.split(":")
        options.seed, options.only, options.tasks = int(seed), [target], [(target, int(number))]
    if unknown := set(options.only) - set(SHARES):
        parser.error(f"unknown target: {', '.join(sorted(unknown))}")
    return options


def fuzz(options: argparse.Namespace) -> int:
    """Try the cases and print the table."""
    sys.path.append(os.environ[INSIDE])
    from host_library import import_host, import_pack

    base = Path(tempfile.mkdtemp(prefix="nextcontrol-fuzz-host-"))
    try:
        import_host(Path(os.environ["NEXTCONTROL_COMFYUI"]), base, is_cpu=True)
        import_pack()
        from fuzz.campaign import Campaign, write_faults

        tasks = options.tasks if options.case else None
        tally = Campaign(options.only).run(options.count, options.seed, 1 if tasks else options.workers, tasks)
        for verdict in tally.verdicts if tasks else []:
            sys.stdout.write("".join(f"{name}: {value}\n" for name, value in verdict.items()) + "\n")
        sys.stdout.write(f"{tally.table()}\n{tally.report()}\n")
        if options.faults:
            write_faults(tally, options.faults)
        return 0 if tally.is_clean else 1
    finally:
        shutil.rmtree(base, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
