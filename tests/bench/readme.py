"""The tables in the README that the benchmarks write."""

from pathlib import Path

README = Path(__file__).parents[2] / "README.md"


def put(name: str, table: str) -> None:
    """Put `table` between the marks of the table called `name`."""
    begin, end = f"<!-- {name} table: begin (written by `make bench`) -->", f"<!-- {name} table: end -->"
    before, rest = README.read_text().split(begin)
    _, after = rest.split(end)
    README.write_text(f"{before}{begin}\n\n{table}\n\n{end}{after}")
