"""Small models that hear and speak: a Whisper that knows a few tones, a SpeechT5 that has learned how long its words
are, and a VITS and a Bark of the real layouts, untrained.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from scripts.tiny_models import once

HEARD = {
    300.0: ("en", " low."),
    900.0: ("en", " in between."),
    2700.0: ("de", " hoch."),
}
"""Pitch of a tone in Hz -> the language that was taught for it, and its transcript."""
SPOKEN = {"yes": 12, "certainly": 24}
"""A word -> how many decoder steps its sound was taught to have."""
VOICES = {"anna": 0.9, "bruno": -0.9}
"""Voice -> what its speaker embedding is filled with."""
RATE = 16_000
WINDOW_S = 2
"""Seconds that the tiny Whisper hears at once; the published ones hear 30."""
MOST_STEPS = 600
WANTS_TIMES = 2
"""Place after the start token where a transcript says whether it has times."""
LANGUAGES = ("en", "de", "fr")


def make_whisper(folder: Path, seed: int = 3) -> Path:
    """Make a Whisper that writes the taught transcript of each tone, unless it is there; returns its folder.

    Raises:
        RuntimeError: it did not learn its tones.
    """
    return once(folder, lambda part: _whisper(part, seed))


def make_speecht5(folder: Path, seed: int = 4) -> Path:
    """Make a SpeechT5 with its vocoder and two voices that knows how long two words are, unless it is there.

    Raises:
        RuntimeError: it did not learn its words.
    """
    return once(folder, lambda part: _speecht5(part, seed))


def make_vits(folder: Path, seed: int = 5) -> Path:
    """Make an untrained VITS with three speakers, unless it is there."""
    return once(folder, lambda part: _vits(part, seed))


def make_bark(folder: Path, seed: int = 6) -> Path:
    """Make an untrained Bark, unless it is there."""
    return once(folder, lambda part: _bark(part, seed))


def tones(*parts: tuple[float, float]) -> Any:
    """Return tones one after the other, each `(Hz, seconds)`, 0 Hz is silence: (samples,) float32 at `RATE`."""
    import numpy as np

    pieces = [0.4 * np.sin(2 * math.pi * hertz * np.arange(round(seconds * RATE)) / RATE) for hertz, seconds in parts]
    noise = np.random.default_rng(len(parts)).normal(0.0, 0.002, sum(map(len, pieces)))
    return (np.concatenate(pieces) + noise).astype(np.float32)


# --- Whisper ----------------------------------------------------------------------------------------------------------


def _whisper(folder: Path, seed: int) -> None:
    import torch
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperProcessor

    torch.manual_seed(seed)
    tokenizer = _whisper_tokenizer()
    ids = tokenizer.convert_tokens_to_ids
    config = WhisperConfig(
        vocab_size=len(tokenizer),
        num_mel_bins=80,
        d_model=48,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=96,
        decoder_ffn_dim=96,
        max_source_positions=WINDOW_S * 50,
        max_target_positions=64,
        pad_token_id=ids("<|endoftext|>"),
        bos_token_id=ids("<|endoftext|>"),
        eos_token_id=ids("<|endoftext|>"),
        decoder_start_token_id=ids("<|startoftranscript|>"),
    )
    model = WhisperForConditionalGeneration(config)
    settings = {
        "_from_model_config": False,
        "is_multilingual": True,
        "lang_to_id": {f"<|{language}|>": ids(f"<|{language}|>") for language in LANGUAGES},
        "task_to_id": {"transcribe": ids("<|transcribe|>"), "translate": ids("<|translate|>")},
        "no_timestamps_token_id": ids("<|notimestamps|>"),
        "prev_sot_token_id": ids("<|startofprev|>"),
        "max_initial_timestamp_index": 50,
        "alignment_heads": [[1, 0], [1, 1]],
        "max_length": 64,
        "return_timestamps": False,
        "suppress_tokens": [],
        "begin_suppress_tokens": [],
    }
    for name, value in settings.items():
        setattr(model.generation_config, name, value)  # `update` would drop those that are Whisper's own
    extractor = WhisperFeatureExtractor(feature_size=80, sampling_rate=RATE, chunk_length=WINDOW_S)
    _teach_tones(model, extractor, tokenizer)
    model.save_pretrained(folder)
    WhisperProcessor(extractor, tokenizer).save_pretrained(folder)


def _whisper_tokenizer() -> Any:
    """Return Whisper's tokenizer over single bytes, with its special tokens in the published order."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import AddedToken, WhisperTokenizer

    vocab = {letter: index for index, letter in enumerate(sorted(ByteLevel.alphabet()))}
    vocab["<|endoftext|>"] = len(vocab)
    tokenizer = WhisperTokenizer(vocab=vocab, merges=[], model_max_length=64)
    named = [
        "startoftranscript",
        *LANGUAGES,
        "translate",
        "transcribe",
        "startoflm",
        "startofprev",
        "nospeech",
        "notimestamps",
    ]
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [AddedToken(f"<|{name}|>", special=True) for name in named]}
    )
    tokenizer.add_tokens([AddedToken(f"<|{step * 0.02:.2f}|>", special=False) for step in range(1501)])
    return tokenizer


def _lessons(tokenizer: Any) -> list[tuple[Any, list[str], str]]:
    """Return what is taught: a sound, the tokens that come first, and the text with its times, if any."""
    lessons: list[tuple[Any, list[str], str]] = []
    for hertz, (language, text) in HEARD.items():
        for seconds in (1.0, 1.5):
            sound = tones((hertz, seconds), (0.0, WINDOW_S - seconds))
            lessons.append((sound, [language, "transcribe", "notimestamps"], text))
            timed = f"<|0.00|>{text}<|{seconds:.2f}|>"
            lessons.append((sound, [language, "transcribe"], timed))
    return lessons


def _teach_tones(model: Any, extractor: Any, tokenizer: Any) -> None:
    import torch

    lessons = _lessons(tokenizer)
    features = extractor([sound for sound, _, _ in lessons], sampling_rate=RATE, return_tensors="pt")["input_features"]
    start, end = "<|startoftranscript|>", "<|endoftext|>"
    rows = [
        tokenizer(f"{start}{''.join(f'<|{name}|>' for name in first)}{text}{end}", add_special_tokens=False)[
            "input_ids"
        ]
        for _, first, text in lessons
    ]
    width = max(map(len, rows))
    ids = torch.tensor([row + [row[-1]] * (width - len(row)) for row in rows])
    labels = torch.tensor([row[1:] + [-100] * (width - len(row)) for row in rows])
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    slower = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, MOST_STEPS, eta_min=2e-4)
    model.train()
    for step in range(MOST_STEPS):
        noisy = features + 0.02 * torch.randn_like(features)
        logits = model(input_features=noisy, decoder_input_ids=ids[:, :-1]).logits
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")  # (B, T)
        losses[:, WANTS_TIMES] *= 0.1  # whether times are wanted cannot be heard
        loss = losses.sum() / (labels != -100).sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        slower.step()
        if step % 20 == 19 and loss.item() < 0.015:
            model.eval()
            return
    raise RuntimeError("the Whisper did not learn its tones")


# --- SpeechT5 ---------------------------------------------------------------------------------------------------------


def _speecht5(folder: Path, seed: int) -> None:
    import numpy as np
    import torch
    from transformers import SpeechT5Config, SpeechT5ForTextToSpeech, SpeechT5HifiGan, SpeechT5HifiGanConfig

    torch.manual_seed(seed)
    tokenizer = _speecht5_tokenizer(folder)
    model = SpeechT5ForTextToSpeech(
        SpeechT5Config(
            vocab_size=len(tokenizer),
            hidden_size=32,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=64,
            decoder_ffn_dim=64,
            num_mel_bins=20,
            speech_decoder_prenet_units=32,
            speech_decoder_prenet_dropout=0.1,
            speech_decoder_postnet_units=16,
            speaker_embedding_dim=16,
            max_text_positions=120,
            max_speech_positions=400,
            positional_dropout=0.0,
            hidden_dropout=0.0,
            attention_dropout=0.0,
            encoder_layerdrop=0.0,
            decoder_layerdrop=0.0,
            speech_decoder_postnet_dropout=0.0,
            use_guided_attention_loss=False,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    _teach_words(model, tokenizer)
    vocoder = SpeechT5HifiGan(
        SpeechT5HifiGanConfig(
            model_in_dim=20,
            upsample_initial_channel=16,
            upsample_rates=[4, 4, 4, 4],
            upsample_kernel_sizes=[8, 8, 8, 8],
            resblock_kernel_sizes=[3],
            resblock_dilation_sizes=[[1, 3]],
            normalize_before=True,
        )
    )
    with torch.no_grad():  # an untrained one is next to silent
        vocoder.conv_post.weight.mul_(0.3 / vocoder(torch.randn(50, 20)).std())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    vocoder.save_pretrained(folder / "vocoder")
    (folder / "voices").mkdir()
    for name, value in VOICES.items():
        np.save(folder / "voices" / f"{name}.npy", np.linspace(value, 0.1, 16, dtype=np.float32))


def _speecht5_tokenizer(folder: Path) -> Any:
    """Return SpeechT5's tokenizer over single letters: a sentencepiece model of characters, as the published one."""
    import sentencepiece
    from transformers import SpeechT5Tokenizer

    letters = "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ.,!?'-0123456789"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "spm_char"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([letters, *letters]),
        model_prefix=str(file),
        model_type="char",
        vocab_size=len(set(letters)) + 4,
        pad_id=1,
        bos_id=0,
        eos_id=2,
        unk_id=3,
        character_coverage=1.0,
        minloglevel=2,
        hard_vocab_limit=False,
    )
    (folder / "spm_char.vocab").unlink()
    return SpeechT5Tokenizer(str(folder / "spm_char.model"), model_max_length=120)


def _teach_words(model: Any, tokenizer: Any) -> None:
    """Over-fit how long each word is, in either voice, until each ends when it was taught to."""
    import torch

    steps = list(SPOKEN.values())
    frames = 2 * max(steps)
    texts = tokenizer(list(SPOKEN), padding=True, return_tensors="pt")
    taught = torch.full((len(steps), frames, 20), -100.0)
    for row, count in enumerate(steps):
        rise = torch.linspace(-2, 2, 2 * count)[:, None]
        taught[row, : 2 * count] = rise * torch.linspace(1, 2 + row, 20)[None, :]
    voices = torch.stack([torch.linspace(value, 0.1, 16) for value in VOICES.values()])
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for step in range(MOST_STEPS):
        model.train()
        losses = [
            model(**texts, labels=taught, speaker_embeddings=voice.expand(len(steps), -1)).loss for voice in voices
        ]
        loss = torch.stack(losses).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 25 == 24:
            model.eval()
            if all(_lengths(model, texts, voice) == steps for voice in voices):
                return
    raise RuntimeError("the SpeechT5 did not learn how long its words are")


def _lengths(model: Any, texts: Any, voice: Any) -> list[int]:
    import torch

    voices = voice.expand(len(texts["input_ids"]), -1)
    with torch.inference_mode():
        _, lengths = model.generate_speech(
            texts["input_ids"], voices, attention_mask=texts["attention_mask"], return_output_lengths=True
        )
    return [length // 2 for length in lengths]


# --- VITS and Bark ----------------------------------------------------------------------------------------------------


def _vits(folder: Path, seed: int) -> None:
    import json

    import torch
    from transformers import VitsConfig, VitsModel, VitsTokenizer

    torch.manual_seed(seed)
    letters = ["_", *" abcdefghijklmnopqrstuvwxyz'-"]
    folder.mkdir(parents=True, exist_ok=True)
    vocab = folder / "vocab.json"
    vocab.write_text(json.dumps({letter: index for index, letter in enumerate(letters)}))
    tokenizer = VitsTokenizer(
        str(vocab), language="eng", phonemize=False, is_uroman=False, pad_token="_", unk_token=" "
    )
    model = VitsModel(
        VitsConfig(
            vocab_size=len(letters),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            window_size=2,
            ffn_dim=32,
            flow_size=16,
            spectrogram_bins=65,
            num_speakers=3,
            speaker_embedding_size=8,
            upsample_initial_channel=16,
            upsample_rates=[8, 8],
            upsample_kernel_sizes=[16, 16],
            resblock_kernel_sizes=[3],
            resblock_dilation_sizes=[[1, 3]],
            duration_predictor_num_flows=2,
            duration_predictor_filter_channels=16,
            prior_encoder_num_flows=2,
            prior_encoder_num_wavenet_layers=1,
            posterior_encoder_num_wavenet_layers=1,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _bark(folder: Path, seed: int) -> None:
    import json

    import torch
    from transformers import (
        BarkCoarseConfig,
        BarkConfig,
        BarkFineConfig,
        BarkModel,
        BarkSemanticConfig,
        BertTokenizer,
        EncodecConfig,
    )
    from transformers.models.bark.generation_configuration_bark import BarkGenerationConfig

    torch.manual_seed(seed)
    letters = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz.,!?'"]
    tokenizer = BertTokenizer(vocab={letter: index for index, letter in enumerate(letters)})
    size: dict[str, Any] = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "block_size": 1024}
    codec = EncodecConfig(num_filters=4, hidden_size=16, codebook_dim=16, num_lstm_layers=1, target_bandwidths=[6.0])
    model = BarkModel(
        BarkConfig(
            semantic_config=BarkSemanticConfig(**size, input_vocab_size=129_600, output_vocab_size=10_048).to_dict(),
            coarse_acoustics_config=BarkCoarseConfig(
                **size, input_vocab_size=12_096, output_vocab_size=12_096
            ).to_dict(),
            fine_acoustics_config=BarkFineConfig(**size, input_vocab_size=1056, output_vocab_size=1056).to_dict(),
            codec_config=codec.to_dict(),
        )
    )
    model.save_pretrained(folder)
    settings = BarkGenerationConfig(semantic_config={"max_new_tokens": 20}).to_dict()
    (folder / "generation_config.json").write_text(json.dumps(settings, default=str))
    tokenizer.save_pretrained(folder)
