// Package client speaks to an async task manager over its REST API.
//
//	c := client.New("http://localhost:8080")
//	task, err := c.CreateTask(ctx, &client.CreateTaskRequest{
//		TaskType: "echo",
//		Payload:  map[string]interface{}{"hello": "world"},
//	})
//	task, err = c.Wait(ctx, task.TaskID)
//
// Every call takes a context and ends with it. What is safe to repeat is repeated when the server is away or busy;
// creates are made safe by an idempotency key, which is chosen if the request has none.
//
// Errors are *APIError (the server refused), *TransportError (no answer came) or *UnexpectedAnswerError (what
// answered is no async task manager); see ErrNotFound and its siblings for errors.Is.
package client

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

const (
	prefix = "/api/v1"

	defaultTimeout    = 30 * time.Second
	defaultRetries    = 5
	defaultRetryDelay = 200 * time.Millisecond

	// cancelPatience is how long a cancel may wait for an executor, beyond the timeout of any request.
	cancelPatience = 30 * time.Second

	// longestWait is how long one request of Wait lasts.
	longestWait = 20 * time.Second

	// waitPause is the least time between two looks of Wait: a server that stops answers its waiters at once.
	waitPause = 200 * time.Millisecond

	// MaxBatch is how many tasks one batch may hold; CreateTasks splits longer lists.
	MaxBatch = 1000
)

// Client is safe for use by many goroutines.
type Client struct {
	baseURL    string
	apiKey     string
	http       *http.Client
	timeout    time.Duration
	retries    int
	retryDelay time.Duration
}

// Option changes what New makes.
type Option func(*Client)

// WithAPIKey has every request show this key.
func WithAPIKey(key string) Option { return func(c *Client) { c.apiKey = key } }

// WithHTTPClient has requests made by this client: for TLS, proxies, tracing.
func WithHTTPClient(h *http.Client) Option { return func(c *Client) { c.http = h } }

// WithTimeout is how long one request may take, waiting on purpose not counted; 30 s by default.
func WithTimeout(d time.Duration) Option { return func(c *Client) { c.timeout = d } }

// WithRetries is how often a request is repeated that is safe to repeat; 5 by default, 0 for never.
func WithRetries(n int) Option { return func(c *Client) { c.retries = n } }

// WithRetryDelay is the time before the first repetition, which doubles with each; 200 ms by default. A server's
// Retry-After counts where it is longer.
func WithRetryDelay(d time.Duration) Option { return func(c *Client) { c.retryDelay = d } }

// New makes a client of the server at this URL, such as http://localhost:8080.
func New(baseURL string, options ...Option) *Client {
	c := &Client{
		baseURL: strings.TrimRight(baseURL, "/"),
		http: &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error {
			return http.ErrUseLastResponse // the API has none, and a key goes nowhere else
		}},
		timeout:    defaultTimeout,
		retries:    defaultRetries,
		retryDelay: defaultRetryDelay,
	}
	for _, option := range options {
		option(c)
	}
	return c
}

// CreateTask creates a task. When it returns, the task is on the server's disk.
//
// The answer knows the task's id alone: of the fields TaskID, TaskType and Priority are set, and Replayed where the
// idempotency key was known before. GetTask has the rest.
func (c *Client) CreateTask(ctx context.Context, request *CreateTaskRequest) (*Task, error) {
	body, err := request.wire()
	if err != nil {
		return nil, err
	}
	var created struct {
		TaskID string `json:"task_id"`
	}
	answer, err := c.call(ctx, call{method: http.MethodPost, path: "/tasks", body: body, safe: true, into: &created})
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

// CreateTasks creates many tasks and returns their ids in order. Up to MaxBatch of them are created all or none;
// more go in several batches, and with an error come the ids of those batches that were created before it.
func (c *Client) CreateTasks(ctx context.Context, requests []*CreateTaskRequest) ([]string, error) {
	ids := make([]string, 0, len(requests))
	for start := 0; start < len(requests); start += MaxBatch {
		end := start + MaxBatch
		if end > len(requests) {
			end = len(requests)
		}
		created, err := c.createBatch(ctx, requests[start:end])
		if err != nil {
			return ids, err
		}
		ids = append(ids, created...)
	}
	return ids, nil
}

func (c *Client) createBatch(ctx context.Context, requests []*CreateTaskRequest) ([]string, error) {
	tasks := make([]*wireTask, 0, len(requests))
	for _, request := range requests {
		task, err := request.wire()
		if err != nil {
			return nil, err
		}
		tasks = append(tasks, task)
	}
	var created struct {
		TaskIDs []string `json:"task_ids"`
	}
	body := map[string]interface{}{"tasks": tasks}
	_, err := c.call(ctx, call{method: http.MethodPost, path: "/tasks/batch", body: body, safe: true, into: &created})
	return created.TaskIDs, err
}

// GetTask returns the task as it is now.
func (c *Client) GetTask(ctx context.Context, taskID string) (*Task, error) {
	task := new(Task)
	_, err := c.call(ctx, call{method: http.MethodGet, path: taskPath(taskID, ""), safe: true, into: task})
	if err != nil {
		return nil, err
	}
	return task, nil
}

// Wait returns the task once it has ended, as whatever; when the context ends first, the context's error.
func (c *Client) Wait(ctx context.Context, taskID string) (*Task, error) {
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
			path:   taskPath(taskID, ""),
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
// the Cursor of the next; an empty one says that there is no more.
func (c *Client) ListTasks(ctx context.Context, request *ListTasksRequest) (*TaskPage, error) {
	page := new(TaskPage)
	_, err := c.call(ctx, call{method: http.MethodGet, path: "/tasks", query: request.values(), safe: true, into: page})
	if err != nil {
		return nil, err
	}
	return page, nil
}

// CancelTask cancels the task. True: it is CANCELLED, and its executor has ended. False without an error: its
// executor has not ended yet, and the task becomes CANCELLED when it does. A task that has ended otherwise is
// ErrConflict.
func (c *Client) CancelTask(ctx context.Context, taskID string) (bool, error) {
	answer, err := c.call(ctx, call{
		method: http.MethodPost,
		path:   taskPath(taskID, "/cancel"),
		extra:  cancelPatience,
		safe:   true, // the same answer however often it is asked
	})
	return err == nil && answer.status == http.StatusOK, err
}

// RetryTask has a FAILED, TIMEOUT or CANCELLED task run again; any other is ErrConflict. It is not repeated by
// itself once it was sent: the task might have run and failed again in between.
func (c *Client) RetryTask(ctx context.Context, taskID string) (*Task, error) {
	task := new(Task)
	_, err := c.call(ctx, call{method: http.MethodPost, path: taskPath(taskID, "/retry"), into: task})
	if err != nil {
		return nil, err
	}
	return task, nil
}

// GetTaskLogs returns the task's log, oldest row first.
func (c *Client) GetTaskLogs(ctx context.Context, taskID string) ([]TaskLog, error) {
	var rows []TaskLog
	_, err := c.call(ctx, call{method: http.MethodGet, path: taskPath(taskID, "/logs"), safe: true, into: &rows})
	return rows, err
}

func taskPath(taskID, verb string) string {
	return "/tasks/" + url.PathEscape(taskID) + verb
}

// sleep waits so long, or until the context ends.
func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

var errNoRequest = errors.New("client: the request is nil")
