-- ARGV[2]: a message for the nodes, or nothing. ARGV[3]: {event, task_id, status} by threes, for whoever listens.
local channel = PREFIX .. 'task:events'
if ARGV[2] ~= '' then
    redis.call('PUBLISH', PREFIX .. 'task:ended', ARGV[2])
end
if redis.call('PUBSUB', 'NUMSUB', channel)[2] > 0 or redis.call('PUBSUB', 'NUMPAT') > 0 then
    local facts = cjson.decode(ARGV[3])
    for i = 1, #facts, 3 do
        local event = {event = facts[i], task_id = facts[i + 1], status = facts[i + 2]}
        redis.call('PUBLISH', channel, cjson.encode(event))
    end
end
return 0
