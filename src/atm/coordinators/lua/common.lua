-- Stands before each script. KEYS[1]: what all names of keys and channels begin with. ARGV[1]: the arguments, as JSON.
--
-- What waits is written `task_id:task_type`; where the queue does not tell its priority, `task_id:task_type:priority`.
-- Ids have no colon, types may have.

local PREFIX = KEYS[1]
local A = cjson.decode(ARGV[1])

local LEADER = PREFIX .. 'scheduler:leader'
local BELL = PREFIX .. 'scheduler:bell'
local WAKE = PREFIX .. 'scheduler:wake'
local INCARNATION = PREFIX .. 'scheduler:incarnation'
local DELAYED = PREFIX .. 'queue:delayed'
local PARKED = PREFIX .. 'queue:parked'
local ROOM = PREFIX .. 'queue:room'
local CREDIT = PREFIX .. 'queue:credit'
local WORKERS = PREFIX .. 'workers'

local PRIORITIES = {'1', '0', '-1'}
local QUEUES = {['1'] = PREFIX .. 'queue:high', ['0'] = PREFIX .. 'queue:normal', ['-1'] = PREFIX .. 'queue:low'}

-- More arguments than some 8,000 do not fit on Lua's stack.
local SLICE = 1000

local function now_ms()
    local time = redis.call('TIME')
    return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function worker_key(id)
    return PREFIX .. 'worker:' .. id
end

local function line_key(task_type, priority)
    return PARKED .. ':' .. task_type .. ':' .. priority
end

local function each_slice(command, key, items)
    for first = 1, #items, SLICE do
        redis.call(command, key, unpack(items, first, math.min(first + SLICE - 1, #items)))
    end
end

local function add_to(lists, key, item)
    local list = lists[key]
    if list then
        list[#list + 1] = item
    else
        lists[key] = {item}
    end
end

local function reversed(items)
    local turned = {}
    for i = #items, 1, -1 do
        turned[#turned + 1] = items[i]
    end
    return turned
end

-- Whether the list began with these, in this order; then they are gone from it. At once, as it nearly always does.
local function cut_head(key, items)
    local head = redis.call('LRANGE', key, 0, #items - 1)
    for i = 1, #items do
        if head[i] ~= items[i] then
            return false
        end
    end
    redis.call('LTRIM', key, #items, -1)
    return true
end

-- Hints of a worker, in their order, to the heads of the lines that they came from.
local function put_back(hints)
    local lists, homes = {}, {}
    for _, hint in ipairs(hints) do
        local element, task_type, priority = string.match(hint, '^([^:]*:(.*)):(%-?%d)$')
        if element and QUEUES[priority] then
            local line = line_key(task_type, priority)
            if not homes[line] then
                homes[line] = redis.call('EXISTS', line) == 1 and line or QUEUES[priority]
            end
            add_to(lists, homes[line], element)
        end
    end
    for key, elements in pairs(lists) do
        each_slice('LPUSH', key, reversed(elements))
    end
end

-- What was handed to the worker, and with `taken` also what it took, goes back.
local function clear_desk(key, taken)
    if taken then
        local hints = redis.call('LRANGE', key .. ':taken', 0, -1)
        for _, hint in ipairs(redis.call('LRANGE', key .. ':queue', 0, -1)) do
            hints[#hints + 1] = hint
        end
        put_back(hints)
        redis.call('DEL', key .. ':queue', key .. ':taken')
    else
        put_back(redis.call('LRANGE', key .. ':queue', 0, -1))
        redis.call('DEL', key .. ':queue')
    end
end

local function forget_worker(id, types)
    local key = worker_key(id)
    clear_desk(key, true)
    redis.call('DEL', key)
    redis.call('HDEL', WORKERS, id)
    for _, task_type in ipairs(cjson.decode(types)) do
        redis.call('SREM', PREFIX .. 'worker:type:' .. task_type, id)
    end
end

local function something_waits()
    for _, key in pairs(QUEUES) do
        if redis.call('EXISTS', key) == 1 then
            return true
        end
    end
    return redis.call('EXISTS', PARKED) == 1
end

-- Wakes the leader, once until it looks. 1: it is the caller's node, which wakes itself.
local function ring()
    if A.leads then
        return 1
    end
    if redis.call('SET', BELL, '1', 'NX', 'PX', 1000) then
        redis.call('PUBLISH', WAKE, '')
    end
    return 0
end

local function run_id()
    return string.match(redis.call('INFO', 'server'), 'run_id:(%w+)')
end
