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
_BASE = re.compile(rf"(?:{'|'.join(BASES)})[.-]")
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
_VOCODER, _POOLING = "vocoder", "1_Pooling"
_ODD = re.compile("[\x00-\x1f\x7f\\\\\ud800-\udfff]")


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
    folders = loaded_folders(files, parts)
    weights = {folder: _weights(folder, names) for folder, names in folders.items()}
    pickles = [path for paths in weights.values() for path in paths if path.endswith(PICKLE)]
    if pickles and not trust_pickles:
        raise OnlyPickles(reference=reference, path=pickles[0])
    if not (any(weights.values()) if PIPELINE in files else weights[""]):
        raise NothingToLoad(reference=reference, problem=_what_else(files))
    texts = {_join(folder, name) for folder, names in folders.items() for name in names if _is_text(name)}
    heavy = {path for paths in weights.values() for path in paths}
    indexes = {_join(folder, name) for folder, names in folders.items() for name in _indexes(names, weights[folder])}
    return [files[path] for path in sorted(texts | heavy | indexes | _beside(files))]


def loaded_weights(paths: Iterable[str], parts: Collection[str] | None = None) -> dict[str, list[str]]:
    """Return the weights that are loaded of a model's files, by their folders; pickles where there is nothing else."""
    folders = loaded_folders(paths, parts)
    return {folder: found for folder, names in folders.items() if (found := _weights(folder, names))}


def loaded_folders(paths: Iterable[str], parts: Collection[str] | None = None) -> dict[str, set[str]]:
    """Return the folders of a repository in which something is loaded, with the names in each.

    The repository's own is the empty one. `parts`: those of a pipeline; none: all that there are.
    """
    folders: dict[str, set[str]] = {"": set()}
    for path in paths:
        folder, _, name = path.rpartition("/")
        folders.setdefault(folder, set()).add(name)
    return {folder: names for folder, names in folders.items() if _is_loaded(folder, folders, parts)}


def weights_of(names: Collection[str], suffix: str = SAFETENSORS) -> list[str]:
    """Return the weights that are loaded, of the names in one folder: in one precision, the plain one if it is there.

    What is named otherwise than the libraries name weights is not found by them, and is not told here.
    `suffix`: of the format, `.safetensors` or `.bin`.
    """
    found = [name for name in names if name.endswith(suffix) and _BASE.match(name)]
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
    return []


def variant_of(weights: Iterable[str]) -> str | None:
    """Return the precision that the libraries must be told to find all of these weights; none if all are plain ones."""
    return max({_variant(path.rpartition("/")[2]) for path in weights} - {""}, default=None)


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


def _is_loaded(folder: str, folders: Mapping[str, set[str]], parts: Collection[str] | None) -> bool:
    """Tell whether a folder is the model's own, of a part of a pipeline, of a module, or of a vocoder."""
    if folder == "":
        return True
    if PIPELINE in folders[""]:
        return "/" not in folder and (parts is None or folder in parts)
    if folder == _VOCODER:
        return CONFIG in folders[folder]
    return folder == _POOLING or ("modules.json" in folders[""] and _MODULE.fullmatch(folder) is not None)


def _weights(folder: str, names: set[str]) -> list[str]:
    """Return the paths of a folder's weights; pickles if there is nothing else."""
    if folder == "" and PIPELINE in names:
        return []  # what lies beside a pipeline's parts is the same, in one file
    return [_join(folder, name) for name in weights_of(names) or weights_of(names, PICKLE)]


def _indexes(names: Collection[str], weights: list[str]) -> list[str]:
    """Return the index of a folder's weights, if these are shards."""
    shard = next((path.rpartition("/")[2] for path in weights if "-of-" in path), None)
    return [name for name in names if shard is not None and _is_index_of(name, shard)]


def _is_text(name: str) -> bool:
    return _TEXTS.fullmatch(name) is not None and _OTHERS.fullmatch(name) is None


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


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
    if any(path.endswith(SAFETENSORS) for path in files):
        return "its safetensors files have other names than the libraries look for"
    return "there are no weights"
