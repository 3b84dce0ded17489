"""`python -m tests.bench [quality]`: measure, write the results to `assets/bench/`, and refresh the tables in the README."""

import argparse
import sys

from tests.bench import quality


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help="quality (default: all)")
    parser.add_argument("--models", nargs="+", default=quality.MODELS, choices=quality.MODELS)
    parser.add_argument("--seeds", nargs="+", type=int, default=quality.SEEDS)
    parser.add_argument("--patterns", nargs="+", default=quality.PATTERNS)
    parser.add_argument("--fresh", action="store_true", help="measure again what is already on file")
    given = parser.parse_args(argv)
    for part in given.parts or ["quality"]:
        if part != "quality":
            sys.stderr.write(f"There is no benchmark {part!r}. There is: quality.\n")
            return 2
        quality.measure(given.models, given.patterns, given.seeds, fresh=given.fresh)
        quality.write_table()
    return 0


if __name__ == "__main__":
    sys.exit(main())
