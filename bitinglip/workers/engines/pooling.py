"""From token vectors to one vector a text, by the files that sentence-transformers keeps beside a model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import orjson
import torch

from bitinglip.workers.engine import ModelSpec
from bitinglip.workers.engines.failures import UnusableModelError

Mode = Literal["mean", "cls", "lasttoken"]
_FLAGS: dict[str, Mode] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "lasttoken",
}
_MODULES = {"Transformer", "Pooling", "Normalize"}


@dataclass(frozen=True)
class Pooling:
    """How one vector is made of a text's token vectors, and how many of these there may be."""

    mode: Mode = "mean"
    most_tokens: int | None = None

    def pool(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Pool (B, T, D) token vectors under a (B, T) mask of the tokens that count; returns (B, D) in float32."""
        hidden = hidden.float()
        if self.mode == "mean":
            weights = mask.unsqueeze(-1).float()  # (B, T, 1)
            return (hidden * weights).sum(1) / weights.sum(1).clamp_min(1e-9)
        order = torch.arange(mask.shape[1], device=mask.device)  # (T)
        at = (mask * order).argmax(1) if self.mode == "lasttoken" else mask.argmax(1)  # (B)
        return hidden[torch.arange(len(hidden), device=mask.device), at]


def read_pooling(spec: ModelSpec) -> Pooling:
    """Read a model's pooling; the mean over the tokens where nothing is said.

    Raises:
        UnusableModelError: it is a kind that we do not have; another kind's vectors would be wrong, not worse.
    """
    folder = Path(spec.path or "")
    kinds = {str(module.get("type", "")).rpartition(".")[2] for module in _read(folder / "modules.json", [])}
    if unknown := sorted(kinds - _MODULES):
        raise UnusableModelError(f"{spec.reference}: its module {unknown[0]} is not supported.")
    most_tokens = _read(folder / "sentence_bert_config.json", {}).get("max_seq_length")
    return Pooling(_mode(spec, _read(folder / "1_Pooling" / "config.json", {})), most_tokens)


def _mode(spec: ModelSpec, config: dict[str, Any]) -> Mode:
    modes = [name for name, chosen in config.items() if name.startswith("pooling_mode_") and chosen is True]
    match modes or [f"pooling_mode_{config['pooling_mode']}" if "pooling_mode" in config else ""]:
        case [""]:
            return "mean"
        case [name] if name in _FLAGS:
            return _FLAGS[name]
        case ["pooling_mode_mean" | "pooling_mode_cls" as name]:
            return "mean" if name.endswith("mean") else "cls"
        case unknown:
            raise UnusableModelError(f"{spec.reference}: its pooling {' + '.join(unknown)} is not supported.")


def _read(file: Path, default: Any) -> Any:
    return orjson.loads(file.read_bytes()) if file.is_file() else default
