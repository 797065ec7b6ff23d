-- The leader A.me has filled the queues.
if redis.call('GET', LEADER) ~= A.me then
    return ''
end
redis.call('SET', INCARNATION, run_id())
return run_id()
