"""Rejected: saved queries and reports."""

from __future__ import annotations

from dataclasses import dataclass

from bitinglip.errors.rejected import Rejected


@dataclass(eq=False, kw_only=True)
class QueryNotFound(Rejected):
    """No saved query has this name, or it was deleted."""

    code, status = "query_not_found", 404
    template = "There is no saved query {name!r}."
    remedy = "`bitinglip query list` lists the saved queries."
    name: str


@dataclass(eq=False, kw_only=True)
class ReportNotFound(Rejected):
    """There is no report of this name."""

    code, status = "report_not_found", 404
    template = "There is no report {name!r}; there are {known}."
    remedy = "Take one of these, or ask in SQL: `POST /v1/query`."
    name: str
    known: str
