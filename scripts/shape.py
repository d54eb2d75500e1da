"""How large files and functions are: information, not a gate (aim: functions of 8 lines, 30 at p90; files of 300)."""

from __future__ import annotations

import ast
import statistics
import sys
from pathlib import Path

LONG_FILE = 300


def main() -> None:
    """Print the figures of the package."""
    files = sorted(Path("bitinglip").rglob("*.py"))
    lines = {path: len(path.read_text("utf-8").splitlines()) for path in files}
    sizes = [
        (node.end_lineno or node.lineno) - node.lineno + 1
        for path in files
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    long = [f"{path} ({count})" for path, count in lines.items() if count > LONG_FILE]
    sys.stdout.write(
        f"shape: {len(files)} files, {sum(lines.values())} lines; file {_spread(list(lines.values()))}; "
        f"function {_spread(sizes)}; over {LONG_FILE} lines: {', '.join(long) or 'none'}\n"
    )


def _spread(values: list[int]) -> str:
    p90 = statistics.quantiles(values, n=10)[-1]
    return f"median {statistics.median(values):.0f}, p90 {p90:.0f}, max {max(values)}"


if __name__ == "__main__":
    main()
