-- The store refused A.hints of worker A.id, of the types A.types: these are blocked, the hints wait in their lines.
local key = worker_key(A.id)
if redis.call('EXISTS', key) == 0 then
    return 0
end
for _, task_type in ipairs(A.types) do
    if redis.call('HEXISTS', ROOM, task_type) == 0 then
        -- Room made while the claim was under way counts.
        redis.call('HSET', ROOM, task_type, redis.call('HGET', CREDIT, task_type) or 0)
    end
    redis.call('HDEL', CREDIT, task_type)
end
for i = #A.hints, 1, -1 do
    local hint = A.hints[i]
    if redis.call('LREM', key .. ':taken', 1, hint) == 1 then
        local element, line = string.match(hint, '^(.*):%-?%d$'), string.match(hint, '^[^:]*:(.*)$')
        redis.call('LPUSH', PARKED .. ':' .. line, element)
        redis.call('SADD', PARKED, line)
    end
end
return ring()
