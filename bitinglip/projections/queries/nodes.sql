-- All nodes that ever said something, by name.

select *
from nodes
order by node_id;
