-- A page of what was asked for, the newest first. $at, $stream and $sequence are those of the last row of the page before.

select recorded_at, stream, sequence, type, about, key_id, address, request_id
from audit
where
    ($key_id is null or key_id = $key_id)
    and ($type is null or type = $type)
    and ($about is null or about = $about)
    and ($since is null or recorded_at >= $since)
    and ($until is null or recorded_at < $until)
    and ($at is null or (recorded_at, stream, sequence) < ($at::timestamp, $stream, $sequence))
order by recorded_at desc, stream desc, sequence desc
limit $limit;
