"""What a picture under way looks like, from its latents alone: a linear map that is fitted to the model's own decoder.

Decoding a preview with the VAE would cost more than a denoising step. A linear map from a latent's channels to a colour
costs next to nothing, and shows composition and colours well enough.
"""

from __future__ import annotations

import base64
import io
from typing import Any

import torch
from PIL import Image

SAMPLES = 4
SIDE = 16
"""Pictures that the map is fitted to, and their side in latent pixels: a thousand of them, for some tens of numbers."""
MOST_SIDE = 64
"""Longest side of a preview in pixels."""
QUALITY = 60


class LatentPreview:
    """Draws latents of one pipeline. `fit` decides whether its latents are of a shape that can be drawn."""

    def __init__(self, weights: torch.Tensor) -> None:
        self._weights = weights  # (channels + 1, 3)

    @classmethod
    def fit(cls, vae: Any, device: torch.device, dtype: torch.dtype) -> LatentPreview | None:
        """Fit a map to a decoder; none if it is not a VAE with latents of (B, channels, H, W)."""
        channels = getattr(getattr(vae, "config", None), "latent_channels", None)
        if not isinstance(channels, int) or not hasattr(vae, "decode"):
            return None
        dice = torch.Generator("cpu").manual_seed(0)
        shape = (SAMPLES, channels, SIDE // 4, SIDE // 4)
        # Patches of one colour each, as pictures have them: noise alone would teach the map the mean colour.
        coarse = torch.randn(shape, generator=dice).repeat_interleave(4, 2).repeat_interleave(4, 3)
        latents = coarse + 0.3 * torch.randn(coarse.shape, generator=dice)  # (B, channels, H, W)
        scale = float(getattr(vae.config, "scaling_factor", 1.0) or 1.0)
        with torch.inference_mode():
            decoded = vae.decode((latents / scale).to(device, dtype)).sample.float().cpu()  # (B, 3, 8 H, 8 W)
        if decoded.ndim != 4 or decoded.shape[1] != 3:
            return None
        seen = torch.nn.functional.adaptive_avg_pool2d(decoded, (SIDE, SIDE))
        given = _with_ones(latents)
        solved = torch.linalg.lstsq(given, seen.permute(0, 2, 3, 1).reshape(-1, 3)).solution
        return cls(solved)

    def draw(self, latents: torch.Tensor) -> str:
        """Return the picture of latents, (channels, H, W), as a data: URL."""
        _, height, width = latents.shape
        colours = _with_ones(latents.float().cpu()[None]) @ self._weights  # (H W, 3), -1 to 1
        pixels = ((colours.reshape(height, width, 3) / 2 + 0.5).clamp(0, 1) * 255).round().byte()
        image = Image.fromarray(pixels.numpy())
        image.thumbnail((MOST_SIDE, MOST_SIDE))
        body = io.BytesIO()
        image.save(body, "WEBP", quality=QUALITY)
        return "data:image/webp;base64," + base64.b64encode(body.getvalue()).decode()


def _with_ones(latents: torch.Tensor) -> torch.Tensor:
    """Return latents, (B, channels, H, W), as rows: (B H W, channels + 1)."""
    rows = latents.permute(0, 2, 3, 1).reshape(-1, latents.shape[1])
    return torch.cat([rows, torch.ones(len(rows), 1)], dim=1)
