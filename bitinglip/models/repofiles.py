"""Which of a repository's files the engines load, by their names alone; pure.

Of the weights: safetensors files, in one of the precisions that lie there. Besides: configurations, and what
tokenizers and processors are made of. Nothing that is code, or could run as such when it is read.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import PurePosixPath

from bitinglip.errors import NothingToLoad, OnlyPickles, UnsafeRepository
from bitinglip.events.model import ModelFile

CONFIG = "config.json"
PIPELINE = "model_index.json"
"""What a diffusers pipeline has; its weights are in the folders of its parts."""
SAFETENSORS, PICKLE = ".safetensors", ".bin"
BASES = ("model", "diffusion_pytorch_model", "pytorch_model")
"""How the libraries name weights: transformers, diffusers, and either one's pickles."""
LIKED_VARIANTS = ("fp16", "bf16")

_TEXTS = re.compile(r".+\.(?:json|jinja|model|spm|tiktoken|codes)|(?:.+[_-])?(?:vocab|merges|dict)\.txt")
"""Configurations, and what tokenizers, processors and chat templates are made of."""
_OTHERS = re.compile(
    r"\..*|.*\.index\..*json|.*_results\.json|.*\.(?:bin|onnx|msgpack|h5|pt|pth|ckpt|gguf)\.json"
    r"|(?:trainer_state|training_args|training_config|data_config|all_configs|onnx_config|adapter_config)\.json"
)
"""What is named like those, and is read by nobody; indexes come with the weights that they are of."""
_MODULE = re.compile(r"\d+_\w+")
"""Folder of a module of sentence-transformers', as `1_Pooling`."""
_BESIDE: Mapping[str, str] = {
    "additional_chat_templates": ".jinja",
    "voices": ".npy",
    "speaker_embeddings": ".npy",
    "speaker_embeddings/v2": ".npy",
}
"""Folders of what is small beside a model, and how it is named."""
_VOCODER = "vocoder"
_ODD = re.compile(r"[\x00-\x1f\x7f\\]")


def wanted(
    listing: Iterable[ModelFile],
    *,
    reference: str = "the model",
    parts: Collection[str] | None = None,
    trust_pickles: bool = False,
) -> list[ModelFile]:
    """Return the files of a repository that engines load, by path.

    Args:
        listing: All files of the repository.
        reference: The model's name, for what errors say.
        parts: Folders of a pipeline's parts, as its `model_index.json` names them; none: all that have something.
        trust_pickles: Whether weights may be pickles (`.bin`) where there are no safetensors files.

    Raises:
        UnsafeRepository: the listing names a place outside of the repository.
        OnlyPickles: there are no weights but pickles, and these are not trusted.
        NothingToLoad: there is no configuration, or no weights.
    """
    files = {_safe(file.path, reference): file for file in listing}
    if PIPELINE not in files and CONFIG not in files:
        raise NothingToLoad(reference=reference, problem=_what_else(files))
    folders = _folders(files)
    chosen: set[str] = set()
    weights = False
    for folder in _part_folders(folders, parts) if PIPELINE in files else _model_folders(folders):
        texts = {name for name in folders[folder] if _TEXTS.fullmatch(name) and not _OTHERS.fullmatch(name)}
        heavy = _weights(folder, folders[folder], reference, trust_pickles=trust_pickles)
        weights |= bool(heavy) and (folder == "" or PIPELINE in files)
        chosen |= {f"{folder}/{name}" if folder else name for name in texts | heavy}
    if not weights:
        raise NothingToLoad(reference=reference, problem=_what_else(files))
    return [files[path] for path in sorted(chosen | _beside(files))]


def weights_of(names: Collection[str], suffix: str = SAFETENSORS) -> list[str]:
    """Return the weights that are loaded, of the names in one folder: in one precision, the plain one if it is there.

    `suffix`: of the format, `.safetensors` or `.bin`.
    """
    found = [name for name in names if name.endswith(suffix)]
    variants = {_variant(name) for name in found}
    variant = next((name for name in ("", *LIKED_VARIANTS, *sorted(variants)) if name in variants), "")
    dotted = f".{variant}" if variant else ""
    here = sorted(name for name in found if _variant(name) == variant)
    for base in BASES:
        whole = f"{base}{dotted}{suffix}"
        shards = [name for name in here if re.fullmatch(rf"{re.escape(base + dotted)}-\d+-of-\d+{suffix}", name)]
        # With both, diffusers takes the shards, if an index tells of them, and transformers the whole.
        if whole in here and not (shards and base.startswith("diffusion") and f"{whole}.index.json" in names):
            return [whole]
        if shards:
            return shards
    return here


def _variant(name: str) -> str:
    """Return the precision in a file's name: `fp16` of `model.fp16.safetensors`; of most there is none."""
    return re.sub(r"-\d+-of-\d+$", "", name.rpartition(".")[0]).partition(".")[2]


def _safe(path: str, reference: str) -> str:
    """Return a path that lies in the repository's folder on every machine."""
    parts = path.split("/")
    if _ODD.search(path) or ":" in parts[0] or not all(0 < len(part.encode()) < 256 for part in parts):
        raise UnsafeRepository(reference=reference, path=path)
    if {".", ".."} & set(parts) or len(path.encode()) > 1024:
        raise UnsafeRepository(reference=reference, path=path)
    return path


def _folders(files: Collection[str]) -> dict[str, set[str]]:
    """Return the names in each folder; the repository's own is the empty one."""
    folders: dict[str, set[str]] = {}
    for path in files:
        folder, _, name = path.rpartition("/")
        folders.setdefault(folder, set()).add(name)
    return folders


def _part_folders(folders: Mapping[str, set[str]], parts: Collection[str] | None) -> list[str]:
    """Return a pipeline's own folder and those of its parts."""
    return ["", *[folder for folder in folders if folder and "/" not in folder and (parts is None or folder in parts)]]


def _model_folders(folders: Mapping[str, set[str]]) -> list[str]:
    """Return the folder of a model, of sentence-transformers' modules, and of a vocoder that it brings."""
    modules = [folder for folder in folders if _MODULE.fullmatch(folder)] if "modules.json" in folders[""] else []
    pooling = ["1_Pooling"] if "1_Pooling" in folders and not modules else []
    return ["", *modules, *pooling, *([_VOCODER] if CONFIG in folders.get(_VOCODER, ()) else [])]


def _weights(folder: str, names: set[str], reference: str, *, trust_pickles: bool) -> set[str]:
    """Return a folder's weights, and the indexes of them."""
    if folder == "" and PIPELINE in names:
        return set()  # what lies beside a pipeline's parts is the same, in one file
    found, pickles = weights_of(names), _pickles(names)
    if not found and pickles:
        if not trust_pickles:
            raise OnlyPickles(reference=reference, path=f"{folder}/{pickles[0]}".lstrip("/"))
        found = pickles
    sharded = any("-of-" in name for name in found)
    return set(found) | ({name for name in names if _is_index_of(name, found[0])} if sharded else set())


def _pickles(names: Collection[str]) -> list[str]:
    return [name for name in weights_of(names, PICKLE) if name.startswith(BASES)]


def _is_index_of(name: str, shard: str) -> bool:
    """Tell whether this is the index of a shard's file: its base, format and variant are the same."""
    base, suffix, variant = shard.partition("-")[0].partition(".")[0], PurePosixPath(shard).suffix, _variant(shard)
    return name == f"{base}{suffix}.index{f'.{variant}' if variant else ''}.json"


def _beside(files: Collection[str]) -> set[str]:
    """Return the small files beside a model that lie in folders of known names."""
    return {path for path in files if (folder := path.rpartition("/")[0]) in _BESIDE and path.endswith(_BESIDE[folder])}


def _what_else(files: Collection[str]) -> str:
    """Say what a repository has instead of a model."""
    if any(path.endswith(".gguf") for path in files):
        return "its weights are GGUF files"
    if "adapter_config.json" in files:
        return "it is an adapter for another model"
    if PIPELINE not in files and CONFIG not in files:
        return f"there is neither a {CONFIG} nor a {PIPELINE}"
    return "there are no weights"
