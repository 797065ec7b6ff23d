package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strconv"
)

const (
	// MaxBatch is how many tasks one batch may hold, and maxBatchBytes how long it may be; CreateTasks splits longer
	// lists.
	MaxBatch      = 1000
	maxBatchBytes = 16 << 20

	batchHead, batchTail = `{"tasks":[`, `]}`
)

// CreateTasks creates many tasks, any number, and returns their ids in order. It sends batches of at most MaxBatch
// tasks and 16 MiB, each of which is created all or none; with an error come the ids of those batches that were
// created before it, and what it says of tasks[i] is the place in the whole list.
//
// Each batch is repeated safely by itself. Who calls again after an error gives the requests idempotency keys, so that
// a batch whose answer was lost is not doubled.
func (c *Client) CreateTasks(ctx context.Context, requests []*CreateTaskRequest) ([]string, error) {
	ids := make([]string, 0, len(requests))
	for start := 0; start < len(requests); start = len(ids) {
		body, count, err := nextBatch(requests, start)
		if err != nil {
			return ids, err
		}
		created := createdTasks{count: count}
		what := call{method: http.MethodPost, path: tasksPath + "/batch", body: body, safe: true, into: &created}
		if _, err := c.call(ctx, what); err != nil {
			return ids, moved(err, start)
		}
		ids = append(ids, created.TaskIDs...)
	}
	return ids, nil
}

type createdTasks struct {
	TaskIDs []string `json:"task_ids"`
	count   int
}

func (c *createdTasks) isWhole() bool { return len(c.TaskIDs) == c.count }

// nextBatch is a body, and of how many requests: those from start that fit, one at least.
func nextBatch(requests []*CreateTaskRequest, start int) ([]byte, int, error) {
	body := bytes.NewBufferString(batchHead)
	count := 0
	for ; start+count < len(requests) && count < MaxBatch; count++ {
		text, err := requests[start+count].encode()
		if err != nil {
			return nil, 0, fmt.Errorf("tasks[%d]: %w", start+count, err)
		}
		if count > 0 {
			if body.Len()+1+len(text)+len(batchTail) > maxBatchBytes {
				break
			}
			body.WriteByte(',')
		}
		body.Write(text)
	}
	body.WriteString(batchTail)
	return body.Bytes(), count, nil
}

var place = regexp.MustCompile(`\btasks\[(\d+)\]`)

// moved is the refusal of a batch, with the places of its tasks in the whole list.
func moved(err error, start int) error {
	var refused *APIError
	if start == 0 || !errors.As(err, &refused) {
		return err
	}
	move := func(text string) string {
		return place.ReplaceAllStringFunc(text, func(found string) string {
			index, err := strconv.Atoi(place.FindStringSubmatch(found)[1])
			if err != nil { // beyond any list
				return found
			}
			return fmt.Sprintf("tasks[%d]", index+start)
		})
	}
	told := *refused
	told.Message = move(told.Message)
	told.Errors = make([]FieldError, len(refused.Errors))
	for i, wrong := range refused.Errors {
		told.Errors[i] = FieldError{move(wrong.Field), wrong.Reason}
	}
	return &told
}
