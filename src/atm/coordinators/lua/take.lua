-- All that was handed to worker A.id; with A.again also what it took, as it may never have heard of that.
local queue, taken = worker_key(A.id) .. ':queue', worker_key(A.id) .. ':taken'
local hints = redis.call('LRANGE', queue, 0, -1)
if #hints > 0 then
    if redis.call('EXISTS', taken) == 0 then
        redis.call('RENAME', queue, taken)
    else
        each_slice('RPUSH', taken, hints)
        redis.call('DEL', queue)
    end
end
if A.again then
    hints = redis.call('LRANGE', taken, 0, -1)
end
return table.concat(hints, '\n')
