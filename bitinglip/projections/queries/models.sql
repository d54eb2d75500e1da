-- All models that a worker ever registered, by name.

select
    reference, kind, revision, architecture, size_bytes, context_tokens, registered_at, last_sequence
from models
order by reference, kind, revision;
