"""What published repositories have, as their listings tell: sizes in bytes, and paths. Written down in 2026."""

from __future__ import annotations

GPT2 = """
445 .gitattributes
125162496 64-8bits.tflite
248269688 64-fp16.tflite
8092 README.md
665 config.json
497933648 flax_model.msgpack
124 generation_config.json
456318 merges.txt
548105171 model.safetensors
665 onnx/config.json
653665842 onnx/decoder_model.onnx
655190213 onnx/decoder_model_merged.onnx
124 onnx/generation_config.json
456318 onnx/merges.txt
2107652 onnx/tokenizer.json
1042301 onnx/vocab.json
548118077 pytorch_model.bin
497933648 tf_model.h5
1355256 tokenizer.json
26 tokenizer_config.json
1042301 vocab.json
"""

LLAMA_8B = """
1519 .gitattributes
7627 LICENSE
41169 README.md
4691 USE_POLICY.md
826 config.json
185 generation_config.json
4976698672 model-00001-of-00004.safetensors
4999802720 model-00002-of-00004.safetensors
4915916176 model-00003-of-00004.safetensors
1168138808 model-00004-of-00004.safetensors
23950 model.safetensors.index.json
16060617592 original/consolidated.00.pth
199 original/params.json
2183982 original/tokenizer.model
73 special_tokens_map.json
9085658 tokenizer.json
50500 tokenizer_config.json
"""

MINILM = """
1229 .gitattributes
190 1_Pooling/config.json
10454 README.md
612 config.json
116 config_sentence_transformers.json
39265 data_config.json
90868376 model.safetensors
349 modules.json
90405214 onnx/model.onnx
45212349 onnx/model_O4.onnx
23026053 onnx/model_qint8_arm64.onnx
90265744 openvino/openvino_model.bin
211315 openvino/openvino_model.xml
90888945 pytorch_model.bin
53 sentence_bert_config.json
112 special_tokens_map.json
91005696 tf_model.h5
466247 tokenizer.json
350 tokenizer_config.json
13156 train_script.py
231508 vocab.txt
"""

DIALOGPT_SMALL = """
445 .gitattributes
3221 README.md
641 config.json
497934072 flax_model.msgpack
124 generation_config.json
146 generation_config_for_conversational.json
456318 merges.txt
351265583 pytorch_model.bin
497933648 tf_model.h5
614 tokenizer_config.json
1042301 vocab.json
"""

WHISPER_TURBO = """
1519 .gitattributes
20951 README.md
34648 added_tokens.json
1256 config.json
3772 generation_config.json
493869 merges.txt
1617824864 model.safetensors
52666 normalizer.json
340 preprocessor_config.json
2186 special_tokens_map.json
2709020 tokenizer.json
282843 tokenizer_config.json
1036558 vocab.json
"""

BLIP = """
1477 .gitattributes
5983 README.md
4563 config.json
989820849 model.safetensors
287 preprocessor_config.json
989820849 pytorch_model.bin
125 special_tokens_map.json
990275136 tf_model.h5
711396 tokenizer.json
506 tokenizer_config.json
231508 vocab.txt
"""

SD_2_1 = """
1477 .gitattributes
12116 README.md
342 feature_extractor/preprocessor_config.json
537 model_index.json
345 scheduler/scheduler_config.json
633 text_encoder/config.json
680820392 text_encoder/model.fp16.safetensors
1361596304 text_encoder/model.safetensors
680896215 text_encoder/pytorch_model.fp16.bin
1361671895 text_encoder/pytorch_model.bin
524619 tokenizer/merges.txt
460 tokenizer/special_tokens_map.json
824 tokenizer/tokenizer_config.json
1059962 tokenizer/vocab.json
939 unet/config.json
1731904736 unet/diffusion_pytorch_model.fp16.safetensors
3463726504 unet/diffusion_pytorch_model.safetensors
1732107093 unet/diffusion_pytorch_model.fp16.bin
3463934693 unet/diffusion_pytorch_model.bin
5214865159 v2-1_768-ema-pruned.ckpt
5214604988 v2-1_768-ema-pruned.safetensors
5214865159 v2-1_768-nonema-pruned.ckpt
611 vae/config.json
167335342 vae/diffusion_pytorch_model.fp16.safetensors
334643276 vae/diffusion_pytorch_model.safetensors
334711857 vae/diffusion_pytorch_model.bin
"""

SDXL = """
1477 .gitattributes
14109 LICENSE.md
12121 README.md
53823 comparison.png
609 model_index.json
6938078334 sd_xl_base_1.0.safetensors
6938081905 sd_xl_base_1.0_0.9vae.safetensors
49553604 sd_xl_offset_example-lora_1.0.safetensors
479 scheduler/scheduler_config.json
565 text_encoder/config.json
492401329 text_encoder/flax_model.msgpack
492587457 text_encoder/model.onnx
246144152 text_encoder/model.fp16.safetensors
492265168 text_encoder/model.safetensors
492242672 text_encoder/openvino_model.bin
1057789 text_encoder/openvino_model.xml
575 text_encoder_2/config.json
2778653077 text_encoder_2/flax_model.msgpack
1041992 text_encoder_2/model.onnx
2778639360 text_encoder_2/model.onnx_data
1389382176 text_encoder_2/model.fp16.safetensors
2778702264 text_encoder_2/model.safetensors
524619 tokenizer/merges.txt
472 tokenizer/special_tokens_map.json
737 tokenizer/tokenizer_config.json
1059962 tokenizer/vocab.json
524619 tokenizer_2/merges.txt
460 tokenizer_2/special_tokens_map.json
725 tokenizer_2/tokenizer_config.json
1059962 tokenizer_2/vocab.json
1680 unet/config.json
5135149760 unet/diffusion_pytorch_model.fp16.safetensors
10270077736 unet/diffusion_pytorch_model.safetensors
7293842 unet/model.onnx
10269856428 unet/model.onnx_data
10269933172 unet/openvino_model.bin
642 vae/config.json
167335342 vae/diffusion_pytorch_model.fp16.safetensors
334643268 vae/diffusion_pytorch_model.safetensors
607 vae_1_0/config.json
167335342 vae_1_0/diffusion_pytorch_model.fp16.safetensors
334643268 vae_1_0/diffusion_pytorch_model.safetensors
607 vae_decoder/config.json
198093688 vae_decoder/model.onnx
607 vae_encoder/config.json
136775724 vae_encoder/model.onnx
"""

SPEECHT5 = """
1477 .gitattributes
8121 README.md
40 added_tokens.json
2062 config.json
234 generation_config.json
433 preprocessor_config.json
585479797 pytorch_model.bin
234 special_tokens_map.json
238473 spm_char.model
232 tokenizer_config.json
"""

R1_QWEN_32B = """
1519 .gitattributes
1064 LICENSE
18981 README.md
664 config.json
777119 figures/benchmark.jpg
181 generation_config.json
8792578462 model-00001-of-000008.safetensors
8776906899 model-00002-of-000008.safetensors
8776906927 model-00003-of-000008.safetensors
8776906927 model-00004-of-000008.safetensors
8776906927 model-00005-of-000008.safetensors
8776906927 model-00006-of-000008.safetensors
8776906927 model-00007-of-000008.safetensors
4073821536 model-00008-of-000008.safetensors
64018 model.safetensors.index.json
7031660 tokenizer.json
3071 tokenizer_config.json
"""
