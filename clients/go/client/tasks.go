package client

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"time"
)

const tasksPath = "/api/v1/tasks"

var anyID = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)

// CreateTask creates a task. When it returns, the task is on the server's disk.
//
// The answer knows the task's id alone: of the fields TaskID, TaskType and Priority are set, and Replayed where the
// idempotency key was known before. GetTask has the rest.
func (c *Client) CreateTask(ctx context.Context, request *CreateTaskRequest) (*Task, error) {
	body, err := request.encode()
	if err != nil {
		return nil, err
	}
	created := new(Task)
	answer, err := c.call(ctx, call{method: http.MethodPost, path: tasksPath, body: body, safe: true, into: created})
	if err != nil {
		return nil, err
	}
	return &Task{
		TaskID:   created.TaskID,
		TaskType: request.TaskType,
		Priority: request.Priority,
		Replayed: answer.status == http.StatusOK,
	}, nil
}

// GetTask returns the task as it is now.
func (c *Client) GetTask(ctx context.Context, taskID string) (*Task, error) {
	path, err := taskPath(taskID, "")
	if err != nil {
		return nil, err
	}
	task := new(Task)
	if _, err := c.call(ctx, call{method: http.MethodGet, path: path, safe: true, into: task}); err != nil {
		return nil, err
	}
	return task, nil
}

// Wait returns the task once it has ended, as whatever; when the context ends first, the context's error.
func (c *Client) Wait(ctx context.Context, taskID string) (*Task, error) {
	path, err := taskPath(taskID, "")
	if err != nil {
		return nil, err
	}
	for {
		asked := time.Now()
		wait := longestWait
		if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) < wait {
			wait = time.Until(deadline)
		}
		if wait < 0 {
			wait = 0
		}
		task := new(Task)
		_, err := c.call(ctx, call{
			method: http.MethodGet,
			path:   path,
			query:  url.Values{"wait": {strconv.FormatFloat(wait.Seconds(), 'f', 3, 64)}},
			extra:  wait,
			safe:   true,
			into:   task,
		})
		if err != nil {
			return nil, err
		}
		if task.Status.IsTerminal() {
			return task, nil
		}
		if err := sleep(ctx, waitPause-time.Since(asked)); err != nil {
			return nil, err
		}
	}
}

// ListTasks returns a page of tasks, newest first; nil asks for the first page of all. The NextCursor of a page is
// the Cursor of the next; an empty one says that there is no more. IterTasks goes from page to page by itself.
func (c *Client) ListTasks(ctx context.Context, request *ListTasksRequest) (*TaskPage, error) {
	page := new(TaskPage)
	_, err := c.call(ctx, call{method: http.MethodGet, path: tasksPath, query: request.values(), safe: true, into: page})
	if err != nil {
		return nil, err
	}
	return page, nil
}

// CancelTask cancels the task. True: it is CANCELLED, and its executor has ended. False without an error: its
// executor has not ended yet, and the task becomes CANCELLED when it does. A task that has ended otherwise is
// ErrConflict.
func (c *Client) CancelTask(ctx context.Context, taskID string) (bool, error) {
	path, err := taskPath(taskID, "/cancel")
	if err != nil {
		return false, err
	}
	answer, err := c.call(ctx, call{
		method: http.MethodPost,
		path:   path,
		extra:  cancelPatience,
		safe:   true, // the same answer however often it is asked
	})
	return err == nil && answer.status == http.StatusOK, err
}

// RetryTask has a FAILED, TIMEOUT or CANCELLED task run again; any other is ErrConflict. It is not repeated by
// itself once it was sent: the task might have run and failed again in between.
func (c *Client) RetryTask(ctx context.Context, taskID string) (*Task, error) {
	path, err := taskPath(taskID, "/retry")
	if err != nil {
		return nil, err
	}
	task := new(Task)
	if _, err := c.call(ctx, call{method: http.MethodPost, path: path, into: task}); err != nil {
		return nil, err
	}
	return task, nil
}

// GetTaskLogs returns the task's log, oldest row first.
func (c *Client) GetTaskLogs(ctx context.Context, taskID string) ([]TaskLog, error) {
	path, err := taskPath(taskID, "/logs")
	if err != nil {
		return nil, err
	}
	var rows []TaskLog
	if _, err := c.call(ctx, call{method: http.MethodGet, path: path, safe: true, into: &rows}); err != nil {
		return nil, err
	}
	return rows, nil
}

// taskPath refuses what is no task's id and could change what the path means: an empty one would be the list.
func taskPath(taskID, verb string) (string, error) {
	if !anyID.MatchString(taskID) {
		return "", fmt.Errorf("%w: %q is no task's id", ErrNotFound, shortened(taskID))
	}
	return tasksPath + "/" + taskID + verb, nil
}
