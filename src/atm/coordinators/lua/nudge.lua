redis.call('PUBLISH', A.channel, '')
return 0
