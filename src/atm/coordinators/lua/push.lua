-- A.now: elements by priority. A.later: hints, each followed by its delay in ms.
local delayed = redis.call('EXISTS', DELAYED) == 1
for priority, elements in pairs(A.now) do
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
