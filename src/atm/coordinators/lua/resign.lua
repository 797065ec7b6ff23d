-- A.me does not lead any more; whoever waits for that is told.
if redis.call('GET', LEADER) == A.me then
    redis.call('DEL', LEADER)
    redis.call('PUBLISH', PREFIX .. 'scheduler:resigned', A.me)
end
return 0
