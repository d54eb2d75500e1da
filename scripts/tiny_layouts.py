"""Small models of further published layouts that see and draw: a LLaVA, stable-diffusion-2-1-base, and an SDXL."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from scripts.tiny_chats import split_bpe
from scripts.tiny_models import once, teach
from scripts.tiny_pictures import CAPTIONS, SIDE, clip_tokenizer, colour_vae, picture
from scripts.tiny_texts import write

QUESTIONS = {
    "Describe this image.": CAPTIONS,
    "What colour is it?": {colour: f"It is {colour}." for colour in CAPTIONS},
}
"""What the LLaVA can be asked, and what it answers for each colour."""
LLAVA_TEMPLATE = (
    "{%- for turn in messages %}{{- turn.role | upper ~ ': ' }}{%- for part in turn.content %}"
    "{{- '<image>\n' if part.type == 'image' else part.text }}{%- endfor %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- ' ASSISTANT: ' }}{%- endif %}"
)
PATCH = 8


def make_llava(folder: Path, seed: int = 21) -> Path:
    """Make a LLaVA that answers `QUESTIONS` about a picture, unless it is there; returns its folder."""
    return once(folder, lambda part: _llava(part, seed))


def make_stable_diffusion_2_1(folder: Path, seed: int = 22) -> Path:
    """Make an untrained Stable Diffusion in stable-diffusion-2-1-base's layout, unless it is there."""
    return once(folder, lambda part: _stable_diffusion_2_1(part, seed))


def make_sdxl(folder: Path, seed: int = 23) -> Path:
    """Make an untrained Stable Diffusion XL in the layout of its base model, unless it is there."""
    return once(folder, lambda part: _sdxl(part, seed))


# --- LLaVA ------------------------------------------------------------------------------------------------------------


def _llava(folder: Path, seed: int) -> None:
    import torch
    from transformers import CLIPImageProcessor, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

    torch.manual_seed(seed)
    tokenizer = _llava_tokenizer()
    sides: dict[str, Any] = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    processor: Any = LlavaProcessor(
        CLIPImageProcessor(**sides),
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_TEMPLATE,
    )
    config = LlavaConfig(
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": SIDE,
            "patch_size": PATCH,
        },
        text_config={
            "model_type": "llama",
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 128,
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(SIDE // PATCH) ** 2,
    )
    model = LlavaForConditionalGeneration(config)
    asked = [
        (processor.apply_chat_template(_chat(question, colour), **HOW), answer)
        for question, answers in QUESTIONS.items()
        for colour, answer in answers.items()
    ]
    lessons = [
        (inputs["input_ids"][0].tolist(), tokenizer(f"{answer}</s>", add_special_tokens=False)["input_ids"])
        for inputs, answer in asked
    ]
    teach(model, lessons, pixel_values=torch.cat([inputs["pixel_values"] for inputs, _ in asked]))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    _as_before(folder)


HOW: dict[str, Any] = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}


def _chat(question: str, colour: str) -> list[dict[str, Any]]:
    content = [{"type": "image", "image": picture(colour)}, {"type": "text", "text": question}]
    return [{"role": "user", "content": content}]


def _llava_tokenizer() -> Any:
    from transformers import PreTrainedTokenizerFast

    texts = [(question, answer) for question, answers in QUESTIONS.items() for answer in answers.values()]
    backend = split_bpe(texts, ("<s>", "</s>", "<pad>", "<image>"), ())
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=128
    )


def _as_before(folder: Path) -> None:
    """Write a processor's files as they were when LLaVA came out: each part has one of its own."""
    settings = json.loads((folder / "processor_config.json").read_bytes())
    write(folder, "preprocessor_config.json", settings.pop("image_processor"))
    write(folder, "processor_config.json", settings)
    template = folder / "chat_template.jinja"
    write(folder, "chat_template.json", {"chat_template": template.read_text("utf-8")})
    template.unlink()


# --- Stable Diffusion -------------------------------------------------------------------------------------------------

NOISE: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "steps_offset": 1,
}
TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 77,
    "projection_dim": 32,
}
UNET: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (16, 32),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (2, 4),
    "norm_num_groups": 8,
    "layers_per_block": 1,
    "use_linear_projection": True,
}


def _stable_diffusion_2_1(folder: Path, seed: int) -> None:
    """Make what is published: OpenCLIP's text encoder, PNDM, no safety checker, and each file in several formats."""
    import diffusers
    import torch
    from transformers import CLIPImageProcessor, CLIPTextModel

    library: Any = diffusers
    torch.manual_seed(seed)
    tokenizer = clip_tokenizer(pad_token="!")
    pipeline = library.StableDiffusionPipeline(
        vae=colour_vae(),
        text_encoder=CLIPTextModel(_text_config(tokenizer, "gelu")),
        tokenizer=tokenizer,
        unet=library.UNet2DConditionModel(**UNET, cross_attention_dim=32),
        scheduler=library.PNDMScheduler(**NOISE, skip_prk_steps=True, set_alpha_to_one=False),
        safety_checker=None,
        feature_extractor=CLIPImageProcessor(),
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    _add_what_is_not_to_be_loaded(pipeline, folder, "v2-1_512-ema-pruned")


def _sdxl(folder: Path, seed: int) -> None:
    """Make what is published: two text encoders with a tokenizer each, and a denoiser that is told the size."""
    import diffusers
    import torch
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    library: Any = diffusers
    torch.manual_seed(seed)
    one, two = clip_tokenizer(), clip_tokenizer(pad_token="!")
    unet = library.UNet2DConditionModel(
        **UNET,
        cross_attention_dim=64,
        transformer_layers_per_block=(1, 2),
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 32,
    )
    vae = colour_vae()
    vae.register_to_config(force_upcast=True)
    pipeline = library.StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(_text_config(one, "quick_gelu")),
        text_encoder_2=CLIPTextModelWithProjection(_text_config(two, "gelu")),
        tokenizer=one,
        tokenizer_2=two,
        unet=unet,
        scheduler=library.EulerDiscreteScheduler(**NOISE, timestep_spacing="leading"),
        add_watermarker=False,
    )
    pipeline.save_pretrained(folder)
    _add_what_is_not_to_be_loaded(pipeline, folder, "sd_xl_base_1.0")


def _text_config(tokenizer: Any, activation: str) -> Any:
    from transformers import CLIPTextConfig

    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    return CLIPTextConfig(**TEXT, **ends, vocab_size=len(tokenizer), hidden_act=activation)


def _add_what_is_not_to_be_loaded(pipeline: Any, folder: Path, whole: str) -> None:
    """Add what is published beside the weights: a variant in half precision, pickles, and all of it in one file."""
    import torch
    from safetensors.torch import save_file

    parts = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    with torch.no_grad():
        for weight in (weight for part in parts for weight in part.parameters()):
            weight.zero_()
    pipeline.to(torch.float16).save_pretrained(folder, variant="fp16")
    for file in list(folder.glob("*/*.safetensors")):
        name = file.name.replace("model.", "pytorch_model.") if file.parent.name.startswith("text") else file.name
        file.with_name(name).with_suffix(".bin").write_bytes(b"not to be read")
    (folder / f"{whole}.ckpt").write_bytes(b"not to be read")
    save_file({"model.weight": torch.zeros(1)}, folder / f"{whole}.safetensors")
    for name in ("tokenizer", "tokenizer_2"):
        if hasattr(pipeline, name):
            _tokenizer_as_before(folder / name, getattr(pipeline, name))


def _tokenizer_as_before(folder: Path, tokenizer: Any) -> None:
    """Write a CLIP tokenizer's files as they were: a vocabulary, merges and special tokens."""
    tokenizer.backend_tokenizer.model.save(str(folder))
    write(folder, "special_tokens_map.json", tokenizer.special_tokens_map)
    (folder / "tokenizer.json").unlink()
