-- Whether messages get through: a write, which a replica or a full memory refuses.
redis.call('SET', PREFIX .. 'scheduler:probe', '1', 'PX', 1000)
return 0
