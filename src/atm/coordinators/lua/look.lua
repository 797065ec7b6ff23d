-- What the leader has to know for a dispatch. Promotes what is due, and helps out workers that do not take.
-- A.me: the leader. A.mark: the incarnation that it filled the queues of. A.limit: hints to see at the most.
-- A.reach: hints to see at least, when there are free slots. A.patience: ms that a worker may leave its queue.
redis.call('DEL', BELL)
if redis.call('GET', LEADER) ~= A.me then
    return {'not leader'}
end
if A.mark ~= '' and redis.call('GET', INCARNATION) ~= A.mark then
    return {'forgotten'}
end
local now = now_ms()

local due = redis.call('ZRANGEBYSCORE', DELAYED, '-inf', now, 'LIMIT', 0, SLICE)
if #due > 0 then
    local lists = {}
    for _, hint in ipairs(due) do
        local element, priority = string.match(hint, '^(.*):(%-?%d)$')
        if element and QUEUES[priority] then
            add_to(lists, QUEUES[priority], element)
        end
    end
    for key, elements in pairs(lists) do
        each_slice('RPUSH', key, elements)
    end
    each_slice('ZREM', DELAYED, due)
end
local next_due = redis.call('ZRANGE', DELAYED, 0, 0, 'WITHSCORES')[2]

local workers, free = {}, 0
local registry = redis.call('HGETALL', WORKERS)
for i = 1, #registry, 2 do
    local id, types = registry[i], registry[i + 1]
    local key = worker_key(id)
    local facts = redis.call('HMGET', key, 'capacity', 'current_load', 'draining', 'leader', 'handed_at',
        'name', 'address', 'last_heartbeat')
    if not facts[1] then
        forget_worker(id, types)
    else
        local handed = redis.call('LLEN', key .. ':queue')
        if handed > 0 and now - tonumber(facts[5] or 0) > A.patience then
            clear_desk(key, false)
            redis.call('HDEL', key, 'leader')
        elseif facts[4] == A.me and facts[3] ~= '1' then
            local busy = tonumber(facts[2]) + handed + redis.call('LLEN', key .. ':taken')
            local slots = tonumber(facts[1]) - busy
            if slots > 0 then
                free = free + slots
                workers[#workers + 1] = {id, facts[6], facts[7], tonumber(facts[1]), busy, types, facts[8]}
            end
        end
    end
end

local heads, lines, room = {'', '', ''}, {}, {}
if free > 0 then
    local wanted = math.min(A.limit, math.max(free, A.reach))
    for i, priority in ipairs(PRIORITIES) do
        if wanted > 0 then
            local found = redis.call('LRANGE', QUEUES[priority], 0, wanted - 1)
            heads[i] = table.concat(found, '\n')
            wanted = wanted - #found
        end
    end
    lines = redis.call('SMEMBERS', PARKED)
    room = redis.call('HGETALL', ROOM)
end
return {
    'ok',
    next_due and tostring(math.max(0, next_due - now)) or '',
    #workers > 0 and cjson.encode(workers) or '[]',
    table.concat(room, '\n'),
    table.concat(lines, '\n'),
    heads[1], heads[2], heads[3],
}
