-- A.room more tasks of A.type may run; without A.room as many as there are slots.
local blocked = redis.call('HEXISTS', ROOM, A.type) == 1
if not A.room then
    redis.call('HDEL', ROOM, A.type)
    redis.call('HDEL', CREDIT, A.type)
elseif blocked then
    redis.call('HINCRBY', ROOM, A.type, A.room)
elseif redis.call('HINCRBY', CREDIT, A.type, A.room) > A.max then
    redis.call('HSET', CREDIT, A.type, A.max)
end
return (blocked or not A.room) and something_waits() and ring() or 0
