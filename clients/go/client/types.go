package client

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"net/url"
	"strconv"
	"time"
)

// Status is where a task stands.
type Status string

// The states of a task.
const (
	Pending    Status = "PENDING"
	Processing Status = "PROCESSING"
	Success    Status = "SUCCESS"
	Failed     Status = "FAILED"
	Timeout    Status = "TIMEOUT"
	Cancelled  Status = "CANCELLED"
)

// IsTerminal says whether a task of this status has ended.
func (s Status) IsTerminal() bool {
	return s == Success || s == Failed || s == Timeout || s == Cancelled
}

// Priorities of tasks.
const (
	High   = 1
	Normal = 0
	Low    = -1
)

// Task is a task as the server shows it. Payload and Result are JSON as it was written.
type Task struct {
	TaskID            string          `json:"task_id"`
	TaskType          string          `json:"task_type"`
	Status            Status          `json:"status"`
	Priority          int             `json:"priority"`
	Payload           json.RawMessage `json:"payload"`
	Result            json.RawMessage `json:"result"`
	Error             *TaskError      `json:"error"`
	Attempt           int             `json:"attempt"`
	RetryCount        int             `json:"retry_count"`
	MaxRetry          int             `json:"max_retry"`
	Timeout           float64         `json:"timeout"` // seconds
	WorkerID          string          `json:"worker_id"`
	Recoveries        int             `json:"recoveries"`
	Releases          int             `json:"releases"`
	CancelRequestedAt *time.Time      `json:"cancel_requested_at"`
	ScheduledAt       *time.Time      `json:"scheduled_at"`
	CreatedAt         time.Time       `json:"created_at"`
	StartedAt         *time.Time      `json:"started_at"`
	CompletedAt       *time.Time      `json:"completed_at"`
	Progress          *Progress       `json:"progress"`
	ParentID          string          `json:"parent_id"` // the task that has started it as its child
	PendingReason     string          `json:"pending_reason,omitempty"`

	// Replayed is set by CreateTask alone: the idempotency key was known, and this is its task.
	Replayed bool `json:"-"`
}

func (t *Task) isWhole() bool { return t.TaskID != "" }

// TaskError is why the last failed attempt failed. Group is the tree of all errors, where several came together.
type TaskError struct {
	Type      string     `json:"type"`
	Message   string     `json:"message"`
	Retryable bool       `json:"retryable"`
	Group     *ErrorTree `json:"group"`
}

// ErrorTree is an error, and those that it is a group of; More is how many of them were left out.
type ErrorTree struct {
	Type       string       `json:"type"`
	Message    string       `json:"message"`
	Exceptions []*ErrorTree `json:"exceptions"`
	More       int          `json:"more"`
}

// Progress is what the executor reports.
type Progress struct {
	Fraction float64 `json:"fraction"`
	Message  string  `json:"message"`
}

// TaskLog is a row of a task's log. ERROR and INFO rows have no states.
type TaskLog struct {
	LogType    string    `json:"log_type"`
	FromStatus Status    `json:"from_status"`
	ToStatus   Status    `json:"to_status"`
	Message    string    `json:"message"`
	WorkerID   string    `json:"worker_id,omitempty"`
	Attempt    int       `json:"attempt,omitempty"`
	CreatedAt  time.Time `json:"created_at"`
}

// TaskPage is a part of a list.
type TaskPage struct {
	Tasks      []*Task `json:"tasks"`
	NextCursor string  `json:"next_cursor"`
}

func (p *TaskPage) isWhole() bool {
	for _, task := range p.Tasks {
		if task == nil || !task.isWhole() {
			return false
		}
	}
	return p.Tasks != nil
}

// CreateTaskRequest is a task to be created. TaskType is needed; what is left out has the server's defaults.
type CreateTaskRequest struct {
	TaskType string
	Priority int // High, Normal or Low

	// Payload is whatever becomes a JSON object: a map, a struct, a json.RawMessage.
	Payload interface{}

	// Timeout is how long one attempt may take; 0: the default of the type.
	Timeout time.Duration

	// MaxRetry is how often it is tried again; nil: the default of the type. See Int.
	MaxRetry *int

	// Delay is how long it waits before it may run. ScheduledAt is its time instead; not both.
	Delay       time.Duration
	ScheduledAt time.Time

	// IdempotencyKey makes two creates with the same type and payload one. An empty one is chosen for each call,
	// so that the call can be repeated safely by itself.
	IdempotencyKey string
}

// Int is for MaxRetry: client.Int(0) is never. See Ptr for other types.
func Int(n int) *int { return &n }

type wireTask struct {
	TaskType       string      `json:"task_type"`
	Priority       int         `json:"priority"`
	Payload        interface{} `json:"payload,omitempty"`
	Timeout        float64     `json:"timeout,omitempty"`
	MaxRetry       *int        `json:"max_retry,omitempty"`
	Delay          float64     `json:"delay,omitempty"`
	ScheduledAt    string      `json:"scheduled_at,omitempty"`
	IdempotencyKey string      `json:"idempotency_key"`
}

// encode is the request as it is sent; the request itself stays as it is.
func (r *CreateTaskRequest) encode() ([]byte, error) {
	if r == nil {
		return nil, errNoRequest
	}
	task := &wireTask{
		TaskType:       r.TaskType,
		Priority:       r.Priority,
		Payload:        r.Payload,
		Timeout:        r.Timeout.Seconds(),
		MaxRetry:       r.MaxRetry,
		Delay:          r.Delay.Seconds(),
		IdempotencyKey: r.IdempotencyKey,
	}
	if !r.ScheduledAt.IsZero() {
		task.ScheduledAt = r.ScheduledAt.UTC().Format(time.RFC3339Nano)
	}
	if task.IdempotencyKey == "" {
		random := make([]byte, 16)
		if _, err := rand.Read(random); err != nil {
			return nil, err
		}
		task.IdempotencyKey = "go-" + hex.EncodeToString(random)
	}
	return encode(task)
}

// ListTasksRequest says which tasks to list; what is left out does not count.
type ListTasksRequest struct {
	Status        Status
	TaskType      string
	WorkerID      string
	ParentID      string    // whose children
	CreatedAfter  time.Time // this moment included
	CreatedBefore time.Time // this moment not included
	Limit         int       // of a page: 1 to 500; 0: 50
	Cursor        string    // the NextCursor of the page before
}

func (r *ListTasksRequest) values() url.Values {
	values := url.Values{}
	if r == nil {
		return values
	}
	for name, value := range map[string]string{
		"status":    string(r.Status),
		"task_type": r.TaskType,
		"worker_id": r.WorkerID,
		"parent_id": r.ParentID,
		"cursor":    r.Cursor,
	} {
		if value != "" {
			values.Set(name, value)
		}
	}
	for name, moment := range map[string]time.Time{"created_after": r.CreatedAfter, "created_before": r.CreatedBefore} {
		if !moment.IsZero() {
			values.Set(name, moment.UTC().Format(time.RFC3339Nano))
		}
	}
	if r.Limit != 0 {
		values.Set("limit", strconv.Itoa(r.Limit))
	}
	return values
}
