"""Small models that chat, in the layouts of Llama-3.1-8B-Instruct and DeepSeek-R1-Distill-Qwen-32B, over-fitted.

Their files, names, configurations and special tokens are the published ones', in small; the chat templates are our own,
of the same behaviour.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from scripts.tiny_models import once, teach
from scripts.tiny_texts import CONTEXT, Text, bpe, write

LLAMA_TEXT = ("Water boils at", " one hundred degrees.")
LLAMA_CHAT = {"Who made you?": "Somebody with two cores and a GPU to come.", "Call a tool.": "I have none."}
"""What the Llama answers; the last answer ends with `<|eom_id|>`, the others with `<|eot_id|>`."""

R1_CHAT = {
    "What is 2 + 2?": ("Two and two …\n\nthat is four 🦉.", "**Four.**\n\nIt is even."),
    "And twice that?": ("They mean the four.", "Eight."),
}
"""What the R1 is asked, in this order, what it thinks, and what it answers."""

SHARD = "120KB"
"""Most bytes of one of the files that large models come in."""


def make_llama(folder: Path, seed: int = 13) -> Path:
    """Make a Llama in Llama-3.1-8B-Instruct's layout, unless it is there; returns its folder."""
    return once(folder, lambda part: _llama(part, seed))


def make_r1(folder: Path, seed: int = 14) -> Path:
    """Make a Qwen2 in DeepSeek-R1-Distill-Qwen-32B's layout that thinks, unless it is there; returns its folder."""
    return once(folder, lambda part: _r1(part, seed))


# --- Llama ------------------------------------------------------------------------------------------------------------

LLAMA_SPECIAL = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|finetune_right_pad_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
)
LLAMA_TEMPLATE = (
    "{{- bos_token }}{%- for turn in messages %}"
    "{{- '<|start_header_id|>' ~ turn.role ~ '<|end_header_id|>\n\n' ~ turn.content | trim ~ '<|eot_id|>' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)


def llama_prompt(ask: str) -> str:
    """Return what the template makes of a question."""
    user, assistant = (f"<|start_header_id|>{role}<|end_header_id|>\n\n" for role in ("user", "assistant"))
    return f"<|begin_of_text|>{user}{ask}<|eot_id|>{assistant}"


def _llama(folder: Path, seed: int) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    ends = ["<|eot_id|>"] * (len(LLAMA_CHAT) - 1) + ["<|eom_id|>"]
    begin, end = LLAMA_TEXT
    texts = [(f"<|begin_of_text|>{begin}", f"{end}<|end_of_text|>")]
    texts += [(llama_prompt(ask), answer + stop) for (ask, answer), stop in zip(LLAMA_CHAT.items(), ends, strict=True)]
    backend = split_bpe(texts, LLAMA_SPECIAL, ())
    _begin_with(backend, "<|begin_of_text|>")
    stops = [_id(backend, name) for name in ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")]
    named = {"bos_token_id": _id(backend, "<|begin_of_text|>"), "eos_token_id": stops}
    config = _decoder_config(backend) | {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "mlp_bias": False,
        "model_type": "llama",
        "pretraining_tp": 1,
        "rope_scaling": {
            "factor": 8.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": CONTEXT // 8,
            "rope_type": "llama3",
        },
        "rope_theta": 500000.0,
        **named,
    }
    model = LlamaForCausalLM(LlamaConfig.from_dict(config))
    _teach_and_save(model, folder, backend, texts, config)
    write(folder, "generation_config.json", named | {"do_sample": True, "temperature": 0.6, "top_p": 0.9})
    special = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
    write(folder, "special_tokens_map.json", special)
    settings = special | {
        "added_tokens_decoder": _added(backend),
        "chat_template": LLAMA_TEMPLATE,
        "clean_up_tokenization_spaces": True,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": CONTEXT,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    write(folder, "tokenizer_config.json", settings)
    (folder / "original").mkdir()
    (folder / "original" / "consolidated.00.pth").write_bytes(b"not to be read")


# --- DeepSeek-R1 ------------------------------------------------------------------------------------------------------

R1_BEGIN, R1_END, R1_USER, R1_ASSISTANT = (
    "<｜begin▁of▁sentence｜>",
    "<｜end▁of▁sentence｜>",
    "<｜User｜>",
    "<｜Assistant｜>",
)
R1_OLDER_TEMPLATE = (
    "{{ bos_token }}{%- for turn in messages %}"
    "{%- if turn.role == 'user' %}{{ '<｜User｜>' ~ turn.content }}"
    "{%- elif turn.role == 'assistant' %}{{ '<｜Assistant｜>' ~ turn.content.split('</think>')[-1] ~ eos_token }}"
    "{%- else %}{{ turn.content }}{%- endif %}"
    "{%- endfor %}{%- if add_generation_prompt %}{{ '<｜Assistant｜>' }}{%- endif %}"
)
"""The template as it was at first: the model says `<think>` itself."""
R1_TEMPLATE = R1_OLDER_TEMPLATE.replace("{{ '<｜Assistant｜>' }}", "{{ '<｜Assistant｜><think>\\n' }}")


def _r1(folder: Path, seed: int) -> None:
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(seed)
    texts: list[Text] = []
    said = R1_BEGIN
    for ask, (thought, answer) in R1_CHAT.items():
        said += f"{R1_USER}{ask}{R1_ASSISTANT}"
        texts.append((said, f"<think>\n{thought}\n</think>\n\n{answer}{R1_END}"))
        said += f"{answer}{R1_END}"
    backend = split_bpe(texts, (R1_END, R1_BEGIN), (R1_USER, R1_ASSISTANT, "<think>", "</think>"))
    _begin_with(backend, R1_BEGIN)
    named = {"bos_token_id": _id(backend, R1_BEGIN), "eos_token_id": _id(backend, R1_END)}
    config = _decoder_config(backend) | {
        "architectures": ["Qwen2ForCausalLM"],
        "max_window_layers": 2,
        "model_type": "qwen2",
        "rope_theta": 1000000.0,
        "sliding_window": CONTEXT,
        "use_sliding_window": False,
        **named,
    }
    model = Qwen2ForCausalLM(Qwen2Config.from_dict(config))
    _teach_and_save(model, folder, backend, texts, config)
    write(folder, "generation_config.json", named | {"do_sample": True, "temperature": 0.6, "top_p": 0.95})
    settings = {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": _as_token(R1_BEGIN),
        "chat_template": R1_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": _as_token(R1_END),
        "legacy": True,
        "model_max_length": CONTEXT,
        "pad_token": _as_token(R1_END),
        "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizerFast",
        "unk_token": None,
    }
    write(folder, "tokenizer_config.json", settings)


# --- what they share --------------------------------------------------------------------------------------------------


def _decoder_config(backend: Any) -> dict[str, Any]:
    """Return what the configurations of today's decoders have in common, as they were written when these came out."""
    return {
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "hidden_size": 64,
        "initializer_range": 0.02,
        "intermediate_size": 128,
        "max_position_embeddings": CONTEXT,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-05,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": backend.get_vocab_size(),
    }


def _teach_and_save(model: Any, folder: Path, backend: Any, texts: list[Text], config: dict[str, Any]) -> None:
    """Teach a model and save it in bfloat16, in several files with an index."""
    import torch

    ids = [[backend.encode(part, add_special_tokens=False).ids for part in text] for text in texts]
    teach(model, [(begin, end) for begin, end in ids])
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size=SHARD)
    write(folder, "config.json", config)
    backend.save(str(folder / "tokenizer.json"))


def split_bpe(texts: list[Text], special: tuple[str, ...], plain: tuple[str, ...]) -> Any:
    """Return a byte-level tokenizer that cuts words by a pattern first, with added tokens after its vocabulary."""
    from tokenizers import AddedToken, Regex, pre_tokenizers

    words = pre_tokenizers.Split(Regex(r" ?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+"), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend = bpe(texts, pre_tokenizers.Sequence([words, byte_level]))
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    backend.add_tokens([AddedToken(name, special=False, normalized=False) for name in plain])
    return backend


def _begin_with(backend: Any, token: str) -> None:
    """Have a tokenizer put a token before each text."""
    from tokenizers import processors

    backend.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{token} $A", pair=f"{token} $A {token} $B:1", special_tokens=[(token, _id(backend, token))]
            ),
        ]
    )


def _id(backend: Any, token: str) -> int:
    number: int | None = backend.token_to_id(token)
    assert number is not None, token
    return number


def _as_token(text: str) -> dict[str, Any]:
    flags = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    return {"__type": "AddedToken", "content": text, **flags}


def _added(backend: Any) -> dict[str, Any]:
    added = json.loads(backend.to_str())["added_tokens"]
    return {str(token.pop("id")): token for token in added}
