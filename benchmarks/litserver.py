"""The embedding model behind LitServe with its dynamic batching, to compare with: `python -m benchmarks.litserver`.

LitServe reads the annotations of `decode_request` at run time, so they must not be strings: no postponed
evaluation here.
"""

import sys
from typing import Any

import litserve  # pyright: ignore[reportMissingImports]

from benchmarks.bare import encoder

MOST, WAIT_S = 64, 0.01


class Embedder(litserve.LitAPI):  # pyright: ignore[reportUntypedBaseClass]
    """One text in, one vector out, batched."""

    def setup(self, device: str) -> None:
        """Load the model."""
        self._encode = encoder(sys.argv[1])

    def decode_request(self, request: dict[str, Any]) -> str:
        """Return a request's text."""
        return request["input"]

    def batch(self, inputs: list[str]) -> list[str]:
        """Return a batch."""
        return list(inputs)

    def predict(self, x: list[str]) -> list[list[float]]:
        """Return a vector a text."""
        return self._encode(x)

    def unbatch(self, output: list[list[float]]) -> list[list[float]]:
        """Return the vectors."""
        return output

    def encode_response(self, output: list[float]) -> dict[str, Any]:
        """Return an answer."""
        return {"embedding": output}


if __name__ == "__main__":
    api = Embedder(max_batch_size=MOST, batch_timeout=WAIT_S)
    litserve.LitServer(api, accelerator="cpu").run(
        port=int(sys.argv[2]), host="127.0.0.1", log_level="error", generate_client_file=False
    )
