-- Worker A.id is gone.
forget_worker(A.id, redis.call('HGET', WORKERS, A.id) or '[]')
return something_waits() and ring() or 0
