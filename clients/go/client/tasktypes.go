package client

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"time"
)

const taskTypesPath = "/api/v1/task-types"

// RetryStrategy is how the delays between the attempts of a task grow.
type RetryStrategy string

// The strategies: always the retry delay, or the retry delay × the backoff rate to the power of the retries so far.
const (
	Fixed       RetryStrategy = "FIXED"
	Exponential RetryStrategy = "EXPONENTIAL"
)

// TaskTypeSettings are the settings of one task type.
type TaskTypeSettings struct {
	TaskType        string        `json:"task_type"`
	DefaultTimeout  float64       `json:"default_timeout"` // seconds
	DefaultMaxRetry int           `json:"default_max_retry"`
	RetryStrategy   RetryStrategy `json:"retry_strategy"`
	RetryDelay      float64       `json:"retry_delay"` // seconds
	BackoffRate     float64       `json:"backoff_rate"`
	MaxConcurrent   *int          `json:"max_concurrent"` // nil: no cap
	Enabled         bool          `json:"enabled"`
}

func (s *TaskTypeSettings) isWhole() bool { return s.TaskType != "" }

// TaskTypeChanges is what is to be changed of a task type's settings; what is nil stays as it is. See Ptr.
type TaskTypeChanges struct {
	DefaultTimeout  *time.Duration
	DefaultMaxRetry *int
	RetryStrategy   *RetryStrategy
	RetryDelay      *time.Duration
	BackoffRate     *float64
	MaxConcurrent   *int
	NoCap           bool // instead of MaxConcurrent: any number may run at a time
	Enabled         *bool
}

// Ptr is for fields that may be left out: client.Ptr(false), client.Ptr(90*time.Second).
func Ptr[T any](value T) *T { return &value }

func (r *TaskTypeChanges) encode() ([]byte, error) {
	if r == nil {
		return nil, errNoRequest
	}
	if r.NoCap && r.MaxConcurrent != nil {
		return nil, fmt.Errorf("%w: MaxConcurrent and NoCap exclude each other", ErrInvalid)
	}
	changes := map[string]interface{}{}
	if r.DefaultTimeout != nil {
		changes["default_timeout"] = r.DefaultTimeout.Seconds()
	}
	if r.DefaultMaxRetry != nil {
		changes["default_max_retry"] = *r.DefaultMaxRetry
	}
	if r.RetryStrategy != nil {
		changes["retry_strategy"] = *r.RetryStrategy
	}
	if r.RetryDelay != nil {
		changes["retry_delay"] = r.RetryDelay.Seconds()
	}
	if r.BackoffRate != nil {
		changes["backoff_rate"] = *r.BackoffRate
	}
	if r.MaxConcurrent != nil || r.NoCap {
		changes["max_concurrent"] = r.MaxConcurrent // nil is null: no cap
	}
	if r.Enabled != nil {
		changes["enabled"] = *r.Enabled
	}
	return encode(changes)
}

// ListTaskTypes returns the settings of the types that were configured, or that a worker supports.
func (c *Client) ListTaskTypes(ctx context.Context) ([]*TaskTypeSettings, error) {
	var types []*TaskTypeSettings
	if _, err := c.call(ctx, call{method: http.MethodGet, path: taskTypesPath, safe: true, into: &types}); err != nil {
		return nil, err
	}
	return types, nil
}

// GetTaskType returns the settings of one type. ErrNotFound: nobody has configured it, and no worker supports it.
func (c *Client) GetTaskType(ctx context.Context, taskType string) (*TaskTypeSettings, error) {
	types, err := c.ListTaskTypes(ctx)
	if err != nil {
		return nil, err
	}
	for _, settings := range types {
		if settings != nil && settings.TaskType == taskType {
			return settings, nil
		}
	}
	return nil, fmt.Errorf("%w: no task type %q", ErrNotFound, shortened(taskType))
}

// PutTaskType changes what is given, and returns the settings as they are now.
func (c *Client) PutTaskType(ctx context.Context, taskType string, changes *TaskTypeChanges) (*TaskTypeSettings, error) {
	if taskType == "" || taskType == "." || taskType == ".." { // these would mean another path
		return nil, fmt.Errorf("%w: %q is no task type", ErrInvalid, taskType)
	}
	body, err := changes.encode()
	if err != nil {
		return nil, err
	}
	settings := new(TaskTypeSettings)
	path := taskTypesPath + "/" + url.PathEscape(taskType)
	what := call{method: http.MethodPut, path: path, body: body, safe: true, into: settings}
	if _, err := c.call(ctx, what); err != nil {
		return nil, err
	}
	return settings, nil
}
