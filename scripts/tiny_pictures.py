"""Small models that draw and see a few colours: a Stable Diffusion and a BLIP of the published layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scripts.tiny_models import once

CAPTIONS = {
    "red": "a field of red poppies",
    "green": "grass after the rain",
    "blue": "the sea at noon",
    "white": "snow on the mountain",
}
"""Colour of a picture -> the caption that was taught for it."""
COLOURS = {"red": (200, 30, 30), "green": (30, 160, 50), "blue": (30, 60, 200), "white": (245, 245, 245)}
SIDE = 32
"""Side of the captioner's pictures in pixels."""
MOST_STEPS = 600
UNET_STEPS = 400
LATENT_SCALE = 1.7
"""What brings colours between -1 and 1 to a variance of about one."""
START, END, PAD = "[DEC]", "[SEP]", "[PAD]"


def make_blip(folder: Path, seed: int = 3) -> Path:
    """Make a BLIP that says the taught caption for each colour, unless it is there; returns its folder.

    Raises:
        RuntimeError: it did not learn its captions.
    """
    return once(folder, lambda part: _blip(part, seed))


def make_stable_diffusion(folder: Path, seed: int = 5) -> Path:
    """Make a Stable Diffusion of the published layout that draws `a COLOUR picture`, unless it is there."""
    return once(folder, lambda part: _stable_diffusion(part, seed))


def picture(colour: str, side: int = 48) -> Any:
    """Return a picture (PIL) of one colour, with a little noise, the same each time."""
    import numpy as np
    from PIL import Image

    noise = np.random.default_rng(len(colour)).integers(-8, 9, (side, side, 3))
    return Image.fromarray(np.clip(np.array(COLOURS[colour]) + noise, 0, 255).astype("uint8"))


def _blip(folder: Path, seed: int) -> None:
    import torch
    from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

    torch.manual_seed(seed)
    words = sorted({word for caption in CAPTIONS.values() for word in caption.split()} | {"picture", "of"})
    names = [PAD, "[UNK]", "[CLS]", END, "[MASK]", START, *words]
    tokenizer = BertTokenizer(vocab={name: index for index, name in enumerate(names)}, model_max_length=32)
    tokenizer.add_special_tokens({"bos_token": START})
    processor = BlipProcessor(BlipImageProcessor(size={"height": SIDE, "width": SIDE}), tokenizer)
    ends = {"bos_token_id": names.index(START), "sep_token_id": names.index(END), "pad_token_id": 0}
    config = BlipConfig(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": SIDE,
            "patch_size": 8,
        },
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "encoder_hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 64,
            "eos_token_id": names.index(END),
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            **ends,
        },
        projection_dim=32,
    )
    model = BlipForConditionalGeneration(config)
    _teach(model, processor, names)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def _teach(model: Any, processor: Any, names: list[str]) -> None:
    """Over-fit the captions until each is said as taught, for a picture with other noise as well."""
    import torch

    pixels = processor.image_processor([picture(colour) for colour in CAPTIONS], return_tensors="pt")["pixel_values"]
    texts = [[START, *caption.split(), END] for caption in CAPTIONS.values()]
    width = max(map(len, texts))
    ids = torch.tensor([[names.index(word) for word in [*text, *[PAD] * (width - len(text))]] for text in texts])
    labels = ids.masked_fill(ids == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for step in range(MOST_STEPS):
        noisy = pixels + 0.05 * torch.randn_like(pixels)
        loss = model(pixel_values=noisy, input_ids=ids, attention_mask=(ids != 0).long(), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 19 and _knows(model, processor, pixels):
            model.eval()
            return
    raise RuntimeError("the captioner did not learn its captions")


def _knows(model: Any, processor: Any, pixels: Any) -> bool:
    import torch

    model.eval()
    with torch.inference_mode():
        said = processor.batch_decode(model.generate(pixel_values=pixels, max_new_tokens=16), skip_special_tokens=True)
    model.train()
    return [text.strip() for text in said] == list(CAPTIONS.values())


def _stable_diffusion(folder: Path, seed: int) -> None:
    import diffusers
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel

    library: Any = diffusers  # its types are narrower than what it takes

    torch.manual_seed(seed)
    tokenizer = clip_tokenizer()
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=77,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    vae = colour_vae()
    unet = library.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=8,
        norm_num_groups=8,
        layers_per_block=1,
    )
    scheduler = library.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    _teach_prompts(unet, vae, text, tokenizer, scheduler)
    pipeline = library.StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)


def colour_vae() -> Any:
    """Return an autoencoder whose latents are colours."""
    import diffusers

    library: Any = diffusers
    vae = library.AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=1,
        sample_size=64,
    )
    _keep_colours(vae)
    return vae


def _keep_colours(vae: Any) -> None:
    """Set the autoencoder's weights so that a latent is the mean colour of its 8 by 8 pixels, and back.

    Channels bear the colour, its negative, and a large number with its negative: so a normalisation over all of them
    has a mean of nothing and a spread that is known, and is undone by its own scale. Every residual branch is nothing.
    """
    import torch

    colour, large, above = torch.eye(3), 100.0, 8.0
    with torch.no_grad():
        for name, weight in vae.named_parameters():
            if "conv2" in name or "to_out" in name:
                weight.zero_()
        for name, module in vae.named_modules():
            if name.endswith("downsamplers.0.conv"):
                module.weight.zero_()
                module.weight[range(8), range(8), :2, :2] = 0.25
                module.bias.zero_()
            elif name.endswith("upsamplers.0.conv") or name in {"quant_conv", "post_quant_conv"}:
                torch.nn.init.dirac_(module.weight)
                module.bias.zero_()
        for part in (vae.encoder, vae.decoder):
            part.conv_in.weight.zero_()
            part.conv_in.weight[:6, :3, 1, 1] = torch.cat([colour, -colour])
            part.conv_in.bias.copy_(torch.tensor([0.0] * 6 + [large, -large]))
            part.conv_norm_out.weight.fill_(large / 2)
            part.conv_norm_out.bias.fill_(above)  # where the activation is nearly a straight line
            part.conv_out.weight.zero_()
            part.conv_out.weight[:3, :3, 1, 1] = colour
            part.conv_out.bias.zero_()
            part.conv_out.bias[:3] = -above
        vae.encoder.conv_out.bias[4:] = -20.0  # the logarithm of the latents' variance
    vae.register_to_config(scaling_factor=LATENT_SCALE)


def _teach_prompts(unet: Any, vae: Any, text: Any, tokenizer: Any, scheduler: Any) -> None:
    """Teach the denoiser a colour for each prompt; of an empty one, any of them."""
    import torch

    prompts = ["", *(f"a {colour} picture" for colour in COLOURS)]
    ids = tokenizer(prompts, padding="max_length", return_tensors="pt")["input_ids"]
    fields = torch.tensor(list(COLOURS.values()))[:, :, None, None] / 127.5 - 1
    with torch.inference_mode():
        told = text(ids)[0]  # (1 + colours, 77, C)
        drawn = vae.encode(fields.expand(-1, 3, 64, 64)).latent_dist.mean * vae.config.scaling_factor
    told, drawn = told.clone(), drawn.clone()
    optimizer = torch.optim.AdamW(unet.parameters(), lr=3e-3, fused=True)
    slower = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, UNET_STEPS, eta_min=1e-4)
    unet.train()
    for _ in range(UNET_STEPS):
        which = torch.randint(0, len(COLOURS), (16,))
        said = torch.where(torch.rand(16) < 0.1, 0, which + 1)
        noise = torch.randn(16, *drawn.shape[1:])
        times = torch.randint(0, scheduler.config.num_train_timesteps, (16,))
        noisy = scheduler.add_noise(drawn[which], noise, times)
        wanted = scheduler.get_velocity(drawn[which], noise, times)
        loss = (unet(noisy, times, told[said]).sample - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        slower.step()
    unet.eval()


def clip_tokenizer(**special: str) -> Any:
    """Return CLIP's tokenizer over single characters."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    names = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    vocab = {name: index for index, name in enumerate(names)}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=77, **special)
