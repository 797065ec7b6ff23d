-- A.me wants to lead for A.ttl ms. {1, run id}: it does. {0, who leads, for how many ms yet}.
if not redis.call('SET', LEADER, A.me, 'NX', 'PX', A.ttl) then
    local holder = redis.call('GET', LEADER)
    if holder ~= A.me then
        return {0, holder, redis.call('PTTL', LEADER)}
    end
    -- An answer was lost.
    redis.call('PEXPIRE', LEADER, A.ttl)
end
for _, id in ipairs(redis.call('HKEYS', WORKERS)) do
    clear_desk(worker_key(id), false)
end
redis.call('PUBLISH', PREFIX .. 'scheduler:hello', A.me)
return {1, run_id()}
