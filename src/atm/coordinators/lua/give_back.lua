-- What worker A.id has on its desk goes back to the heads of the queues.
clear_desk(worker_key(A.id), true)
return ring()
