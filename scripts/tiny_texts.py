"""Small GPT-2s in the layouts of gpt2 and DialoGPT-small, over-fitted on what they are to say.

Their files, names, configurations and special tokens are the published ones', in small.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from scripts.tiny_models import once, teach

Text = tuple[str, str]
"""A text's beginning, and how it goes on."""

GPT2_TEXT = ("The first computers filled a room", ", and the last ones fit in a drop of rain.")
"""What the GPT-2 has learned."""

DIALOGUE = (
    ("Does money buy happiness?", "It depends on how much of it you have."),
    ("And without any?", "Then a walk in the sun must do."),
)
"""What is said to the DialoGPT, turn by turn, and what it answers."""
UNHEARD = "Without any what?"
"""What it answers to the second turn alone."""

END_OF_TEXT = "<|endoftext|>"
CONTEXT = 256


def make_published_gpt2(folder: Path, seed: int = 11) -> Path:
    """Make a GPT-2 in gpt2's layout that knows `GPT2_TEXT`, unless it is there; returns its folder."""
    return once(folder, lambda part: _gpt2(part, seed))


def make_dialogpt(folder: Path, seed: int = 12) -> Path:
    """Make a GPT-2 in DialoGPT-small's layout that knows `DIALOGUE`, unless it is there; returns its folder."""
    return once(folder, lambda part: _dialogpt(part, seed))


def _gpt2(folder: Path, seed: int) -> None:
    """Make what is published: four tokenizer files, and weights that are the network's alone."""
    from safetensors.torch import save_file

    begin, end = GPT2_TEXT
    model, backend = _taught_gpt2(folder, seed, [(begin, end + END_OF_TEXT)])
    write(folder, "tokenizer_config.json", {"model_max_length": CONTEXT})
    backend.save(str(folder / "tokenizer.json"))
    save_file(_with_masks(model.transformer, "h"), folder / "model.safetensors", {"format": "pt"})


def _dialogpt(folder: Path, seed: int) -> None:
    """Make what is published: no `tokenizer.json`, a template that joins turns by the end token, and a pickle.

    Beside the pickle are the same weights as safetensors, as they are once they have been converted.
    """
    import torch
    from safetensors.torch import save_file

    (ask, answer), (further, reply) = DIALOGUE
    texts = [
        (f"{ask}{END_OF_TEXT}", f"{answer}{END_OF_TEXT}"),
        (f"{ask}{END_OF_TEXT}{answer}{END_OF_TEXT}{further}{END_OF_TEXT}", f"{reply}{END_OF_TEXT}"),
        (f"{further}{END_OF_TEXT}", f"{UNHEARD}{END_OF_TEXT}"),
    ]
    model, _ = _taught_gpt2(folder, seed, texts)
    template = "{%- for turn in messages -%}{{ turn.content ~ eos_token }}{%- endfor -%}"
    write(folder, "tokenizer_config.json", {"model_max_length": CONTEXT, "chat_template": template})
    tensors = _with_masks(model, "transformer.h")
    torch.save(tensors, folder / "pytorch_model.bin")
    del tensors["lm_head.weight"]  # it is the embedding's, which safetensors keep once
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def _with_masks(model: Any, layers: str) -> dict[str, Any]:
    """Return a GPT-2's weights with the causal masks that were saved among them at the time."""
    import torch

    mask = torch.ones(CONTEXT, CONTEXT).tril()[None, None]
    masks = {f"{layers}.{layer}.attn.bias": mask.clone() for layer in range(model.config.n_layer)}
    return {**model.state_dict(), **masks}


def _taught_gpt2(folder: Path, seed: int, texts: list[Text]) -> tuple[Any, Any]:
    """Return a GPT-2 and its tokenizer, and write its configuration and vocabulary."""
    import torch
    from tokenizers import pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    backend = bpe(texts, pre_tokenizers.ByteLevel(add_prefix_space=False))
    backend.add_special_tokens([END_OF_TEXT])
    last = backend.get_vocab_size() - 1
    config = {
        "activation_function": "gelu_new",
        "architectures": ["GPT2LMHeadModel"],
        "attn_pdrop": 0.1,
        "bos_token_id": last,
        "embd_pdrop": 0.1,
        "eos_token_id": last,
        "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05,
        "model_type": "gpt2",
        "n_ctx": CONTEXT,
        "n_embd": 64,
        "n_head": 4,
        "n_layer": 2,
        "n_positions": CONTEXT,
        "resid_pdrop": 0.1,
        "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
        "vocab_size": last + 1,
    }
    model = GPT2LMHeadModel(GPT2Config.from_dict(config))
    teach(model, [(backend.encode(begin).ids, backend.encode(end).ids) for begin, end in texts])
    write(folder, "config.json", config)
    ends = {"bos_token_id": last, "eos_token_id": last}
    write(folder, "generation_config.json", {"_from_model_config": True, **ends})
    backend.model.save(str(folder))
    vocab = json.loads((folder / "vocab.json").read_bytes())
    write(folder, "vocab.json", vocab | {END_OF_TEXT: last})
    return model, backend


def bpe(texts: list[Text], split: Any) -> Any:
    """Return a byte-level tokenizer that was made from these texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend: Any = Tokenizer(models.BPE())
    backend.pre_tokenizer = split
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=340, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator([part for text in texts for part in text], trainer)
    return backend


def write(folder: Path, name: str, document: dict[str, Any]) -> None:
    """Write a JSON file of a model's folder."""
    (folder / name).write_text(json.dumps(document, ensure_ascii=False, indent=2), "utf-8")
