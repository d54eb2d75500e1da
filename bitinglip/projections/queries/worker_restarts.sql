-- How often workers were started again, by node and reason.

select node_id, reason, restarts
from worker_restarts
order by node_id, reason;
