-- The incarnation that the queues were filled in, and the server's.
return {redis.call('GET', INCARNATION) or '', run_id()}
