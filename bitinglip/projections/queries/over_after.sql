-- How many tasks that are over had their last event after $sequence.

select count(*) from tasks where finished_at is not null and last_sequence > $sequence;
