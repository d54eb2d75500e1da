"""Analytics, as the OpenAPI document tells it: SQL, saved queries, reports."""

from __future__ import annotations

from bitinglip import errors
from bitinglip.gateway.answers import FORMATS
from bitinglip.gateway.reports import FORMATS as REPORT_FORMATS
from bitinglip.gateway.schemas import (
    BODY,
    OPTIONAL,
    TEXT,
    TIME,
    Operation,
    Schema,
    array_of,
    in_path,
    in_query,
    object_of,
    ref,
)
from bitinglip.projections.reports import BY

QUERIES = (errors.QueryRefused, errors.QueryTimeout, errors.QueriesBusy)
FORM = in_query("format", "Form of the answer, in place of what `Accept` says.", {"enum": list(FORMATS)})
FORMS = tuple(FORMATS.values())
NAME = in_path("name", "Name of the saved query.", "[a-z0-9][a-z0-9_-]{0,62}")
SAVED: Schema = {
    "type": "object",
    "properties": {
        "name": TEXT,
        "sql": TEXT,
        "description": OPTIONAL,
        "parameters": {"type": "object", "additionalProperties": ref("QueryParameter")},
        "saved_at": TIME,
        "by": OPTIONAL,
    },
    "required": ["name", "sql", "description", "parameters", "saved_at", "by"],
}
NUMBERS: Schema = {"type": "array", "items": {"type": ["number", "null"]}}
CHART: Schema = object_of(
    title=TEXT,
    unit=TEXT,
    kind={"type": "string", "enum": ["stacked", "lines", "bars"]},
    labels=array_of(TEXT),
    series=array_of({"type": "array", "prefixItems": [TEXT, NUMBERS], "minItems": 2, "maxItems": 2}),
)
REPORT: Schema = object_of(
    name=TEXT,
    title=TEXT,
    since=TIME,
    until=TIME,
    by=TEXT,
    columns=array_of(TEXT),
    rows=array_of({"type": "array"}),
    charts=array_of(CHART),
)

ANALYTICS_OPERATIONS = (
    Operation(
        "post", "/v1/query", "Ask the read model in SQL.", {200: ref("Answer")}, (*BODY, *QUERIES), (FORM,),
        body="Query", media_types=FORMS,
        notes="Arrow and CSV are sent as they are made; one that cannot be brought to its end breaks the connection.",
    ),
    Operation(
        "get", "/v1/queries", "The saved queries.",
        {200: {"type": "object", "properties": {"queries": array_of(ref("SavedQuery"))}, "required": ["queries"]}},
    ),
    Operation(
        "get", "/v1/queries/{name}", "One saved query.", {200: ref("SavedQuery")}, (errors.QueryNotFound,), (NAME,)
    ),
    Operation(
        "put", "/v1/queries/{name}", "Give SQL a name, or change what has it.", {200: ref("SavedQuery")},
        (*BODY, errors.NoServer, errors.StreamFull, errors.ProjectionBehind), (NAME,), body="SaveQuery",
    ),
    Operation(
        "delete", "/v1/queries/{name}", "Delete a saved query; returns what it was.", {200: ref("SavedQuery")},
        (errors.QueryNotFound, errors.NoServer, errors.StreamFull, errors.ProjectionBehind), (NAME,),
    ),
    Operation(
        "post", "/v1/queries/{name}/run", "Run a saved query.", {200: ref("Answer")},
        (*BODY, errors.QueryNotFound, *QUERIES), (NAME, FORM), body="RunQuery", media_types=FORMS,
        notes="The body may be left out.",
    ),
    Operation(
        "get", "/v1/reports/{name}", "A report: what was used, how long it took, what failed, how the models did.",
        {200: ref("Report")}, (errors.InvalidInput, errors.ReportNotFound),
        (
            in_path("name", "Which report.", "usage|latency|failures|models"),
            in_query("since", "Its beginning: a time, or how long ago as `24h` or `7d`; a week ago if not given."),
            in_query("until", "Its end; now if not given."),
            in_query("by", "By what it is told: " + "; ".join(f"{name}: {', '.join(by)}" for name, by in BY.items())),
            in_query("key", "Only what this API key used (`usage`)."),
            in_query("model", "Only this model."),
            in_query("format", "In place of what `Accept` says.", {"enum": list(REPORT_FORMATS)}),
        ),
        media_types=tuple(REPORT_FORMATS.values()),
    ),
)  # fmt: skip
