"""Plain scripts, as anybody would write them, to measure the platform against: no queue, no log, no HTTP.

python -m benchmarks.bare text FOLDER        tokens/s of `generate` with static batches, one figure a batch size
python -m benchmarks.bare embed FOLDER       texts/s of a loop over batches, sorted by length
python -m benchmarks.bare one FOLDER         milliseconds of a single text
python -m benchmarks.bare cold FOLDER...     milliseconds of a load and the first token, for each folder
"""

from __future__ import annotations

import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TASKS, TOKENS = 32, 64
WORDS = 8192
SIZES = (8, 16, 32)
EMBED_BATCH = 32
ROUNDS = 40
IDLE_S = 3.0
"""Before a cold load, as a worker is idle before such a task: what runs hot is faster."""


def prompts(count: int = TASKS) -> list[str]:
    """Return prompts of 8 to 48 words, the same each time."""
    dice = random.Random(7)
    return [" ".join(f"w{dice.randrange(WORDS)}" for _ in range(dice.randint(8, 48))) for _ in range(count)]


def texts(count: int) -> list[str]:
    """Return texts of 4 to 60 words, the same each time."""
    dice = random.Random(9)
    words = [
        "cluster",
        "card",
        "log",
        "task",
        "event",
        "queue",
        "worker",
        "model",
        "result",
        "answer",
        "picture",
        "sound",
        "rack",
        "night",
        "market",
        "cat",
    ]
    return [" ".join(dice.choice(words) for _ in range(dice.randint(4, 60))) for _ in range(count)]


def make_llama(folder: Path) -> Path:
    """Make a random Llama of 32 million parameters that never ends by itself, with a tokenizer of words."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    make_tokenizer(folder)
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=9,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def make_tokenizer(folder: Path) -> None:
    """Make a tokenizer of words, `w0` and so on."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({f"w{n}": n for n in range(WORDS)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="w0", unk_token="w0").save_pretrained(folder)


def text(folder: str) -> dict[str, Any]:
    """Measure `generate` with static batches of several sizes."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    asked = prompts()

    def run(size: int) -> float:
        started = time.perf_counter()
        for start in range(0, len(asked), size):
            inputs = tokenizer(asked[start : start + size], padding=True, return_tensors="pt")
            inputs.pop("token_type_ids", None)
            said = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
            tokenizer.batch_decode(said)
        return TASKS * TOKENS / (time.perf_counter() - started)

    with torch.inference_mode():
        run(8)
        return {"parameters": sum(p.numel() for p in model.parameters()), "per_s": {size: run(size) for size in SIZES}}


def embed(folder: str) -> dict[str, Any]:
    """Measure a loop over sorted batches."""
    encode = encoder(folder)
    asked = sorted(texts(512), key=len)
    encode(asked[:EMBED_BATCH])
    started = time.perf_counter()
    for start in range(0, len(asked), EMBED_BATCH):
        encode(asked[start : start + EMBED_BATCH])
    return {"per_s": len(asked) / (time.perf_counter() - started)}


def one(folder: str) -> dict[str, Any]:
    """Measure single texts, one after the other."""
    encode = encoder(folder)
    taken: list[float] = []
    for sentence in texts(ROUNDS + 5):
        started = time.perf_counter()
        encode([sentence])
        taken.append((time.perf_counter() - started) * 1000)
    return {"ms": statistics.median(taken[5:])}


def cold(*folders: str) -> dict[str, Any]:
    """Measure loads of models whose files are not in memory, each with the first token after it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    def first_token(folder: str) -> float:
        forget(Path(folder))
        time.sleep(IDLE_S)
        started = time.perf_counter()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model: Any = AutoModelForCausalLM.from_pretrained(folder)
        inputs = tokenizer("w1 w2 w3", return_tensors="pt")
        inputs.pop("token_type_ids", None)
        model.generate(**inputs, max_new_tokens=1, do_sample=False)
        return (time.perf_counter() - started) * 1000

    return {"ms": [first_token(folder) for folder in folders]}


def forget(folder: Path) -> None:
    """Drop a folder's files from the page cache."""
    for file in folder.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def encoder(folder: str) -> Callable[[list[str]], Any]:
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder)

    def encode(batch: list[str]) -> Any:
        with torch.inference_mode():
            inputs = tokenizer(batch, padding=True, truncation=True, return_tensors="pt")
            states = model(**inputs).last_hidden_state
            mask = inputs["attention_mask"][..., None]
            pooled = (states * mask).sum(1) / mask.sum(1)
            return torch.nn.functional.normalize(pooled, dim=-1).tolist()

    return encode


if __name__ == "__main__":
    measure: Callable[..., Any] = {"text": text, "embed": embed, "one": one, "cold": cold}[sys.argv[1]]
    sys.stdout.write(json.dumps(measure(*sys.argv[2:])) + "\n")
