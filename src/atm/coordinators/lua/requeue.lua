-- Queue those of A.now, elements by priority, that do not wait here already. How many did not; whether to look.
-- Where the search would be long all are taken for known: what is missing all the same comes with a later sweep.
local function known_in(key)
    if redis.call('LLEN', key) > SLICE then
        return setmetatable({}, {__index = function() return true end})
    end
    local known = {}
    for _, element in ipairs(redis.call('LRANGE', key, 0, -1)) do
        known[element] = true
    end
    return known
end

local function but_for_known(priority, elements)
    local new, lines = {}, {}
    local queued = known_in(QUEUES[priority])
    for _, element in ipairs(elements) do
        local line = line_key(string.match(element, ':(.*)$'), priority)
        lines[line] = lines[line] or known_in(line)
        if not queued[element] and not lines[line][element] then
            new[#new + 1] = element
        end
    end
    return new
end

local missing = 0
for priority, elements in pairs(A.now) do
    local new = but_for_known(priority, elements)
    each_slice('RPUSH', QUEUES[priority], new)
    missing = missing + #new
end
return {missing, missing > 0 and ring() or 0}
