-- Worker A.id announces A.facts (field, value, ...) and the types it supports; it is forgotten after A.ttl ms.
local key = worker_key(A.id)
local before = redis.call('HGET', WORKERS, A.id)
local types = cjson.encode(A.types)
if #A.types == 0 then
    types = '[]'
end
if before ~= types then
    for _, task_type in ipairs(before and cjson.decode(before) or {}) do
        redis.call('SREM', PREFIX .. 'worker:type:' .. task_type, A.id)
    end
    for _, task_type in ipairs(A.types) do
        redis.call('SADD', PREFIX .. 'worker:type:' .. task_type, A.id)
    end
    redis.call('HSET', WORKERS, A.id, types)
end
redis.call('HSET', key, 'supported_types', types, 'leader', redis.call('GET', LEADER) or '', unpack(A.facts))
redis.call('PEXPIRE', key, A.ttl)
if A.draining then
    clear_desk(key, false)
end
return something_waits() and ring() or 0
