"""Distil with every kind of loss, alone or as one of several processes; started by test_two_processes."""

import json
import sys
from pathlib import Path

from potstill.config import build_recipe
from potstill.distill import distill


def main(plan_file):
    plan = json.loads(Path(plan_file).read_text())
    for name, values in plan["recipes"].items():
        distill(build_recipe(values), Path(plan["out"]) / name)


if __name__ == "__main__":
    main(sys.argv[1])
