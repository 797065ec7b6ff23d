-- A.now: elements by priority. A.later: hints, each followed by its delay in ms.
-- A.swept: they are likely to be here already. Where the search would be long they are left out: what is missing
-- all the same comes with a later sweep.
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

local delayed = redis.call('EXISTS', DELAYED) == 1
for priority, elements in pairs(A.now) do
    if A.swept then
        elements = but_for_known(priority, elements)
    end
    each_slice('RPUSH', QUEUES[priority], elements)
    if delayed then
        local hints = {}
        for i, element in ipairs(elements) do
            hints[i] = element .. ':' .. priority
        end
        each_slice('ZREM', DELAYED, hints)
    end
end
local first = not delayed or tonumber(redis.call('ZRANGE', DELAYED, 0, 0, 'WITHSCORES')[2] or 'inf')
local news = next(A.now) ~= nil
local now = #A.later > 0 and now_ms()
for i = 1, #A.later, 2 do
    local hint, due = A.later[i], now + A.later[i + 1]
    local known = delayed and redis.call('ZSCORE', DELAYED, hint)
    if not known or due < tonumber(known) then
        redis.call('ZADD', DELAYED, due, hint)
        delayed = true
    end
    news = news or first == true or due < first
end
return news and ring() or 0
