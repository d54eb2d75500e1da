-- All models that were described, or that a worker ever registered, by name.

select *
from models
order by reference, kind, revision;
