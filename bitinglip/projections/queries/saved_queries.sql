select name, sql, description, parameters, saved_at, saved_by, last_sequence
from saved_queries
where $name is null or name = $name
order by name;
