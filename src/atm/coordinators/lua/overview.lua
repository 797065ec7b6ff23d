-- For each priority: length, id of the oldest head; then the parked lines with their lengths, and the workers.
local lines = redis.call('SMEMBERS', PARKED)
local queues = {}
for i, priority in ipairs(PRIORITIES) do
    queues[i] = {redis.call('LLEN', QUEUES[priority]), redis.call('LINDEX', QUEUES[priority], 0) or ''}
end
local parked = {}
for i, line in ipairs(lines) do
    local key = PARKED .. ':' .. line
    local task_type, priority = string.match(line, '^(.*):(%-?%d)$')
    parked[i] = {task_type, tonumber(priority), redis.call('LLEN', key), redis.call('LINDEX', key, 0) or ''}
end
local workers = {}
for _, id in ipairs(redis.call('HKEYS', WORKERS)) do
    local facts = redis.call('HMGET', worker_key(id), 'name', 'address', 'capacity', 'current_load',
        'supported_types', 'last_heartbeat', 'draining')
    if facts[3] then
        workers[#workers + 1] = {id, unpack(facts)}
    end
end
return {
    cjson.encode(queues),
    #parked > 0 and cjson.encode(parked) or '[]',
    #workers > 0 and cjson.encode(workers) or '[]',
    table.concat(redis.call('HGETALL', ROOM), '\n'),
    tostring(redis.call('ZCARD', DELAYED)),
}
