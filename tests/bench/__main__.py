"""`python -m tests.bench [PART …]`: measure what is missing into `assets/bench/`, and refresh the tables in the README."""

import argparse
import sys

from tests.bench import (
    budgets,
    imagenet,
    large,
    quality,
    reliability,
    responsiveness,
    speed,
    structured,
    text,
    unlabelled,
    visitors,
)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    others = ["responsiveness", "reliability", "visitors"]
    parts = ["quality", "budgets", "structured", "unlabelled", "text", "imagenet", "large", *speed.PARTS, *others]
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(parts)} (default: all)")
    parser.add_argument("--models", nargs="+", default=quality.MODELS, choices=quality.MODELS)
    parser.add_argument("--seeds", nargs="+", type=int, default=quality.SEEDS)
    parser.add_argument("--patterns", nargs="+", default=quality.PATTERNS)
    parser.add_argument("--fresh", action="store_true", help="measure again what is already on file")
    given = parser.parse_args(argv)
    for part in given.parts or parts:
        if part not in parts:
            sys.stderr.write(f"There is no benchmark {part!r}. There are: {', '.join(parts)}.\n")
            return 2
        if part == "quality":
            quality.measure(given.models, given.patterns, given.seeds, fresh=given.fresh)
            quality.write_sizes()
            quality.write_table()
        elif part == "budgets":
            budgets.measure(given.models, given.seeds, fresh=given.fresh)
            budgets.write_table()
        elif part == "structured":
            structured.measure(given.models, given.seeds, fresh=given.fresh)
            structured.write_table()
        elif part == "unlabelled":
            unlabelled.measure(fresh=given.fresh)
            unlabelled.write_table()
        elif part == "text":
            text.measure(fresh=given.fresh)
            text.write_table()
        elif part == "imagenet":
            imagenet.measure(fresh=given.fresh)
            imagenet.write_table()
        elif part == "large":
            large.measure(fresh=given.fresh)
            large.write_table()
        elif part == "responsiveness":
            responsiveness.measure(fresh=given.fresh)
        elif part == "reliability":
            reliability.measure(fresh=given.fresh)
            reliability.write_table()
        elif part == "visitors":
            visitors.measure(fresh=given.fresh)
            visitors.write_table()
        else:
            speed.measure([part], fresh=given.fresh)
            speed.write_table()
    return 0


if __name__ == "__main__":
    sys.exit(main())
