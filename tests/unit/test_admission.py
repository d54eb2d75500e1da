"""Whether a task may have its model fetched."""

from __future__ import annotations

import pytest

from bitinglip.gateway.admission import downloads_by_itself
from bitinglip.settings import Gateway, Models, Settings


@pytest.mark.parametrize(
    ("host", "told", "expected"),
    [
        ("127.0.0.1", None, True),
        ("localhost", None, True),
        ("::1", None, True),
        ("0.0.0.0", None, False),
        ("10.0.0.5", None, False),
        ("gateway.lan", None, False),
        ("0.0.0.0", True, True),
        ("127.0.0.1", False, False),
    ],
)
def test_models_are_fetched_by_themselves_where_only_this_machine_asks(
    host: str, told: bool | None, expected: bool
) -> None:
    settings = Settings(gateway=Gateway(host=host), models=Models(auto_download=told))
    assert downloads_by_itself(settings) is expected
