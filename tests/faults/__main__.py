"""The fault matrix: `python -m tests.faults` tries every named fault and prints what was seen.

    python -m tests.faults                       all of them in full numbers, about 20 minutes
    python -m tests.faults --quick               all of them in small numbers, about 3 minutes
    python -m tests.faults --only slow-headers sigterm-in-a-flood
    python -m tests.faults --bundle BUNDLE --result FILE.json

Exit code 0: all survived; 1: not.
"""

import argparse
import json
import sys
from contextlib import nullcontext
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from potstill import machine
from potstill.files import write_text
from tests.faults.bed import Bed, tiny_bundle
from tests.faults.matrix import FAULTS, try_all


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small numbers: less of each fault")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=[fault.name for fault in FAULTS])
    parser.add_argument("--bundle", type=Path, help="a classifier's bundle; a tiny one is made without it")
    parser.add_argument("--threads", default="1")
    parser.add_argument("--result", type=Path, help="JSON file for what was seen")
    parser.add_argument("--list", action="store_true", help="print names and expectations")
    arguments = parser.parse_args()
    wanted = [fault for fault in FAULTS if fault.name in (arguments.only or [fault.name])]
    if arguments.list:
        for fault in wanted:
            print(f"{fault.name:30} {fault.expect}")
        return 0
    tried = []
    made = tiny_bundle() if arguments.bundle is None else nullcontext(arguments.bundle)
    with made as bundle, TemporaryDirectory() as scratch:
        bed = Bed(
            bundle=bundle.resolve(),
            scratch=Path(scratch),
            long=not arguments.quick,
            options=("--threads", arguments.threads),
        )
        for seen in try_all(wanted, bed):
            tried.append(seen)
            print(
                f"{'ok  ' if seen.survived else 'FAIL'} {seen.name:30} {seen.seconds:6.1f} s  {seen.seen}", flush=True
            )
    survived = sum(seen.survived for seen in tried)
    print(f"{survived} of {len(tried)} faults survived")
    if arguments.result:
        content = {
            "date": datetime.now(UTC).date().isoformat(),
            "environment": machine.describe(),
            "numbers": "quick" if arguments.quick else "full",
            "survived": survived,
            "faults": [asdict(seen) for seen in tried],
        }
        write_text(arguments.result, json.dumps(content, indent=1) + "\n")
    return 0 if survived == len(tried) else 1


if __name__ == "__main__":
    sys.exit(main())
