-- One task by its id.

select
    task_id, state, kind, model, lane, key_id, idempotency_key, metadata, params, params_ref, request_sha256,
    max_attempts, run_at, expires_at, timeout_ms, attempt, worker_id, node_id, device, revision, submitted_at,
    queued_at, started_at, finished_at, wait_ms, run_ms, load_ms, result, result_ref, failure, failures,
    input_tokens, output_tokens, versions, cancel_requested, progress_step, progress_total, progress_unit,
    submitted_sequence, last_sequence
from tasks
where task_id = $task_id;
