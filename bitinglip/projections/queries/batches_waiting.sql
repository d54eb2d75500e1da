-- Whether any batch is closed and not completed: the cheap look before that of `batches_over.sql`, at the batches alone.

select 1
from batches
where closed_at is not null and completed_at is null
limit 1;
