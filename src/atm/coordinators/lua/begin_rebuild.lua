-- The leader A.me drops what the queues hold.
if redis.call('GET', LEADER) ~= A.me then
    return 0
end
redis.call('DEL', INCARNATION, DELAYED, ROOM, CREDIT)
for _, key in pairs(QUEUES) do
    redis.call('DEL', key)
end
for _, line in ipairs(redis.call('SMEMBERS', PARKED)) do
    redis.call('DEL', PARKED .. ':' .. line)
end
redis.call('DEL', PARKED)
for _, id in ipairs(redis.call('HKEYS', WORKERS)) do
    redis.call('DEL', worker_key(id) .. ':queue', worker_key(id) .. ':taken')
end
return 1
