-- Attempt A.attempt of task A.task is to end on worker A.id; A.silent: that has been told already.
redis.call('SET', PREFIX .. 'task:cancel:' .. A.task, A.attempt, 'EX', 3600)
if not A.silent then
    redis.call('PUBLISH', worker_key(A.id) .. ':cancel', A.task .. ' ' .. A.attempt)
end
return 0
