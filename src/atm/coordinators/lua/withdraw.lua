-- A.hints do not wait any more. In a long list they are left to be refused at the claim: the search, 0.3 ms a hint at
-- this length, would hold up Redis.
local LONG = 10000

local function drop(key, element)
    return redis.call('LLEN', key) <= LONG and redis.call('LREM', key, 1, element) == 1
end

for _, hint in ipairs(A.hints) do
    if redis.call('ZREM', DELAYED, hint) == 0 then
        local element, task_type, priority = string.match(hint, '^([^:]*:(.*)):(%-?%d)$')
        local line = line_key(task_type, priority)
        if not drop(line, element) then
            drop(QUEUES[priority], element)
        elseif redis.call('EXISTS', line) == 0 then
            redis.call('SREM', PARKED, task_type .. ':' .. priority)
        end
    end
end
return 0
