"""Cards of NVIDIA's for tests: what the stand-in for their driver is to tell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "standin_nvml"
"""What goes on the PYTHONPATH of a process that is to see these cards."""


class Rig:
    """The cards in a machine, in a file that the stand-in reads."""

    def __init__(self, file: Path, count: int = 1) -> None:
        self._file = file
        self.cards: list[dict[str, Any]] = [card(number) for number in range(count)]
        self.tell()

    @property
    def env(self) -> dict[str, str]:
        """What a process needs in its environment to see them."""
        return {"PYTHONPATH": str(FOLDER), "STANDIN_NVML": str(self._file)}

    def tell(self, number: int = 0, **changes: Any) -> None:
        """Let a card tell something else from now on."""
        if changes:
            self.cards[number] |= changes
        new = self._file.with_suffix(".new")
        new.write_text(json.dumps(self.cards), "utf-8")
        new.replace(self._file)


def card(number: int) -> dict[str, Any]:
    """Return a card as nvidia-smi shows an RTX 3070 at work."""
    return {
        "uuid": f"GPU-{number}f3c1a2e-0000-4000-8000-000000000000",
        "name": f"NVIDIA GeForce RTX 3070 #{number}",
        "memory": [8_589_934_592, 3_221_225_472],
        "utilisation": 87,
        "temperature": 64,
        "power_mw": 181_500,
    }
