"""Other task queues, measured on the same machine in the same run, by their public interfaces."""
