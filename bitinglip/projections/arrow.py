"""pyarrow, which comes without types: all that we use of it is `Any` from here on."""

from __future__ import annotations

from typing import Any

import pyarrow  # pyright: ignore[reportMissingTypeStubs]

pa: Any = pyarrow
