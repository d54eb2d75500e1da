"""Rows of the read model as the API shows them."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from bitinglip.projections.readmodel import TaskRow

TASK_SCHEMA: dict[str, Any] = TypeAdapter(TaskRow).json_schema(mode="serialization")
