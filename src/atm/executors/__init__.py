"""How a task's work is carried out: the shipped executors, and the loading of the user's."""
