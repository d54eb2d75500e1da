-- How many tasks are in each state.

select state, count(*) from tasks group by state order by state;
