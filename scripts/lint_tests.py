"""Refuses sleeps and mocks in tests: a test waits for a condition, and runs against the real thing."""

from __future__ import annotations

import re
import sys
from pathlib import Path

RULES = {
    re.compile(r"\b(?:time|asyncio)\.sleep\("): "a test waits by `eventually`, or says `# sleep-ok: why`",
    re.compile(r"unittest\.mock|MagicMock|AsyncMock|\bmocker\b"): "no mocks: use the real thing",
    re.compile(r"pytest\.skip\(|mark\.skip\b|mark\.xfail\b"): "a skipped test needs `# skip-ok: why`",
}
EXCUSE = re.compile(r"# (?:sleep|skip)-ok: \S")


def main() -> int:
    """Print each finding; returns 1 if there is one."""
    found = [
        f"{path}:{number}: {why}"
        for path in sorted(Path("tests").rglob("*.py"))
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        for rule, why in RULES.items()
        if rule.search(line) and not EXCUSE.search(line)
    ]
    sys.stdout.writelines(f"{line}\n" for line in found)
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
