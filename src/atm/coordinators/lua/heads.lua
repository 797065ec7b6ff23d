-- The first A.limit elements of each parked line (`type:priority`) in A.lines; a line that is empty is one no more.
local found = {}
for i, line in ipairs(A.lines) do
    local elements = redis.call('LRANGE', PARKED .. ':' .. line, 0, A.limit - 1)
    if #elements == 0 then
        redis.call('SREM', PARKED, line)
    end
    found[i] = table.concat(elements, '\n')
end
return found
