module github.com/yourusername/async-task-manager

go 1.19
