"""From a snapshot's folder to a model on its device: safetensors alone, offline, and no code of the snapshot's."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import orjson
import torch
import transformers.modeling_utils  # noqa: F401  (190,000 objects, which a first load would bring after the heap is spared)
from transformers import AutoTokenizer, TorchAoConfig
from transformers.utils import logging as transformers_logging

from bitinglip.models.memory import variant
from bitinglip.workers.engine import ModelSpec, Placement
from bitinglip.workers.engines.budget import spread
from bitinglip.workers.engines.failures import LoadError, UnusableModelError, described
from bitinglip.workers.engines.onednn import through_onednn
from bitinglip.workers.engines.quantize import tensor_bytes, torchao_config
from bitinglip.workers.engines.torch_device import dtype_for, give_memory_back, place

PACKAGES = ("torch", "transformers")
TELL_S = 0.05
"""Between two tellings of how far a load is: each wakes a thread, which takes turns with those that load."""
_UNUSED_WEIGHTS = ("pooler.", "lm_head.", "cls.")
"""Parts whose weights a checkpoint may lack: an encoder's heads are not used; a tied one has them elsewhere."""


@dataclass
class Weights:
    """A model's network and tokenizer, on its device."""

    model: Any
    tokenizer: Any
    device: torch.device
    quantized: str | None = None
    """Precision of the linear layers, if it is another one."""
    onednn: str | None = None
    """Version of oneDNN, if the linear layers run through it."""

    @property
    def dtype(self) -> str:
        """Name of the precision."""
        return self.quantized or str(self.model.dtype).removeprefix("torch.")

    @property
    def memory_bytes(self) -> int:
        """Size of the parameters and buffers that are on a device, or in main memory."""
        return tensor_bytes(
            tensor for tensor in (*self.model.parameters(), *self.model.buffers()) if tensor.device.type != "meta"
        )

    @property
    def versions(self) -> dict[str, str]:
        """Versions of the libraries that a result depends on."""
        return {name: version(name) for name in PACKAGES} | ({"onednn": self.onednn} if self.onednn else {})

    def drop(self) -> None:
        """Give the memory back."""
        self.model = self.tokenizer = None
        give_memory_back()


def load_weights(
    auto: Any,
    spec: ModelSpec,
    placement: Placement,
    progress: Callable[[int, int], None],
    *,
    packed: bool = False,
    **options: Any,
) -> Weights:
    """Load a model with a transformers Auto class.

    `packed`: spend time on the load for faster passes, where that can be had (see `through_onednn`).

    Raises:
        UnusableModelError: its weights are not safetensors, are incomplete, or need code of their own.
        LoadError: the folder is missing or broken.
    """
    folder = safe_folder(spec)
    device = place(placement)
    options |= _layout(spec, placement, device)
    with _errors_named(spec, folder), _progress_hooked(progress):
        trusted = {"local_files_only": True, "trust_remote_code": spec.trust_code}
        tokenizer = AutoTokenizer.from_pretrained(folder, **trusted)
        model, info = auto.from_pretrained(
            folder,
            dtype=dtype_for(device, placement, _own_dtype(folder)),
            variant=variant(folder),
            use_safetensors=None if spec.trust_pickles else True,
            output_loading_info=True,
            **trusted,
            **options,
        )
    missing = sorted(name for name in info["missing_keys"] if not any(part in name for part in _UNUSED_WEIGHTS))
    if missing:
        raise UnusableModelError(f"{spec.reference}: {len(missing)} weights are missing, {missing[0]} among them.")
    if "device_map" in options:  # layers that wait on the CPU run on a card
        return Weights(model.eval(), tokenizer, device, spec.quantize)
    placed = model.to(device).eval()
    return Weights(placed, tokenizer, device, spec.quantize, through_onednn(placed, placement.linear, packed=packed))


def _layout(spec: ModelSpec, placement: Placement, device: torch.device) -> dict[str, Any]:
    """Return how `from_pretrained` is to lay a model out: quantised, or over several places, if need be."""
    options = spread(spec, placement)
    config = torchao_config(spec, device)
    if config is None:
        return options
    if device.type != "cpu":
        options.setdefault("device_map", {"": device})  # each layer is quantised where it will be
    return options | {"quantization_config": TorchAoConfig(config)}


def _own_dtype(folder: Path) -> str | None:
    """Return the precision that a checkpoint was saved in, by its configuration."""
    config = orjson.loads((folder / "config.json").read_bytes())
    own = config.get("dtype") or config.get("torch_dtype")
    return own if isinstance(own, str) else None


def safe_folder(spec: ModelSpec) -> Path:
    """Return a model's folder if it has a configuration, and weights that cannot run code."""
    folder = Path(spec.path or "")
    if spec.path is None or not (folder / "config.json").is_file():
        raise LoadError(f"{spec.reference}: its folder is not on this machine, or has no config.json.")
    if not any(folder.glob("*.safetensors")) and not spec.trust_pickles:
        raise UnusableModelError(
            f"{spec.reference}: it has no safetensors files, and weights in other formats can run code when they are "
            "loaded: convert them with transformers' `save_pretrained`, or name the model in `worker.trust_pickles`."
        )
    return folder


@contextmanager
def _errors_named(spec: ModelSpec, folder: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise UnusableModelError(
                f"{spec.reference}: it needs code of its own, which is run only for models in `worker.trust_code`."
            ) from error
        problem = described(error).splitlines()[0].replace(str(folder), spec.reference)
        raise LoadError(f"{spec.reference}: {problem}") from error


@contextmanager
def _progress_hooked(progress: Callable[[int, int], None]) -> Iterator[None]:
    """Let the library's progress bars report to us; they are iterated over, not updated."""
    before = transformers_logging.set_tqdm_hook(lambda _factory, args, kwargs: _Bar(progress, *args, **kwargs))
    try:
        yield
    finally:
        transformers_logging.set_tqdm_hook(before)


class _Bar:
    def __init__(self, progress: Callable[[int, int], None], items: Iterable[Any] = (), *_: Any, **__: Any) -> None:
        self._progress = progress
        self._items = list(items)

    def __iter__(self) -> Iterator[Any]:
        total, told_at = len(self._items), time.monotonic()
        for done, item in enumerate(self._items, 1):
            yield item
            if (now := time.monotonic()) >= told_at + TELL_S or done == total:
                told_at = now
                self._progress(done, total)

    def __getattr__(self, _name: str) -> Callable[..., None]:
        return lambda *_args, **_kwargs: None
