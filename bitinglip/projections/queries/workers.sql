-- All workers that ever said something, by name.

select *
from workers
order by worker_id;
