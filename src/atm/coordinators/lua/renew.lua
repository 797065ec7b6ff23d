-- A.me leads for A.ttl ms more, if it still does. The server's run id; nothing: another leads, or nobody.
if redis.call('GET', LEADER) ~= A.me then
    return ''
end
redis.call('PEXPIRE', LEADER, A.ttl)
return run_id()
