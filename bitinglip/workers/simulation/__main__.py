"""`python -m bitinglip.workers.simulation`: a question as JSON on standard input, its answer on standard output."""

from __future__ import annotations

import sys

import orjson
from pydantic import ValidationError

from bitinglip.workers.simulation.whatif import POLICIES, Question, answer

REFUSED = 2


def main() -> int:
    """Answer one question; 2: it is none, and standard error says why."""
    try:
        question = Question.model_validate_json(sys.stdin.buffer.read())
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        sys.stderr.write(f"{'.'.join(map(str, first['loc']))}: {first['msg']}\n")
        return REFUSED
    if unknown := sorted(set(question.policies) - POLICIES.keys()):
        sys.stderr.write(f"there is no policy {unknown[0]!r}; there are {', '.join(POLICIES)}\n")
        return REFUSED
    sys.stdout.buffer.write(orjson.dumps(answer(question)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
