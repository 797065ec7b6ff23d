-- Worker A.id was told of A.hints when they were handed to it, and takes them. How many more wait for it to take them.
local queue, taken = worker_key(A.id) .. ':queue', worker_key(A.id) .. ':taken'
if cut_head(queue, A.hints) then
    each_slice('RPUSH', taken, A.hints)
else
    for _, hint in ipairs(A.hints) do
        if redis.call('LREM', queue, 1, hint) == 1 then
            redis.call('RPUSH', taken, hint)
        end
    end
end
return redis.call('LLEN', queue)
