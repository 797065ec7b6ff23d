-- Hand over what a look found, and park what cannot run.
-- A.me: the leader. A.workers: ids. A.own: which of them need no wake. A.room: used up, by type.
-- A.sources: {line, priority, elements from its head on, for each the place of its worker in A.workers; 0: parked}.
if redis.call('GET', LEADER) ~= A.me then
    return -1
end
local alive, all_alive = {}, true
for place, id in ipairs(A.workers) do
    alive[place] = redis.call('EXISTS', worker_key(id)) == 1
    all_alive = all_alive and alive[place]
end

local handed, parked, moved = {}, {}, 0
for _, source in ipairs(A.sources) do
    local key, priority, elements, places = PREFIX .. source[1], source[2], source[3], source[4]
    local untouched = all_alive and cut_head(key, elements)
    for i, element in ipairs(elements) do
        local place = places[i]
        if untouched or ((place == 0 or alive[place]) and redis.call('LREM', key, 1, element) == 1) then
            if place == 0 then
                add_to(parked, string.match(element, ':(.*)$') .. ':' .. priority, element)
            else
                add_to(handed, place, element .. ':' .. priority)
                moved = moved + 1
            end
        end
    end
    if source[5] ~= '' and redis.call('EXISTS', key) == 0 then
        redis.call('SREM', PARKED, source[5])
    end
end

for line, elements in pairs(parked) do
    each_slice('RPUSH', PARKED .. ':' .. line, elements)
    redis.call('SADD', PARKED, line)
end
for task_type, count in pairs(A.room) do
    if redis.call('HEXISTS', ROOM, task_type) == 1 then
        redis.call('HINCRBY', ROOM, task_type, -count)
    end
end
local now = now_ms()
for place, hints in pairs(handed) do
    local key = worker_key(A.workers[place])
    if redis.call('EXISTS', key .. ':queue') == 0 then
        redis.call('HSET', key, 'handed_at', now)
        if not A.own[place] then
            -- What fits into a message need not be asked for.
            redis.call('PUBLISH', key .. ':wake', #hints <= SLICE and table.concat(hints, '\n') or '')
        end
    end
    each_slice('RPUSH', key .. ':queue', hints)
end
return moved
