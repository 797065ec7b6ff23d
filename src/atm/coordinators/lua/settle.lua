-- A.hints are dealt with by worker A.id, which has A.load slots busy. -1: it is not registered.
local key = worker_key(A.id)
local taken = key .. ':taken'
if #A.hints > 0 and not cut_head(taken, A.hints) then
    for _, hint in ipairs(A.hints) do
        redis.call('LREM', taken, 1, hint)
    end
end
if redis.call('EXISTS', key) == 0 then
    return -1
end
redis.call('HSET', key, 'current_load', A.load, 'last_heartbeat', A.seen, 'leader', redis.call('GET', LEADER) or '')
return something_waits() and ring() or 0
