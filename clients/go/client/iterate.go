package client

import "context"

// TaskIterator goes through a list, page after page as they are needed. It is for one goroutine.
//
//	tasks := c.IterTasks(&client.ListTasksRequest{Status: client.Failed})
//	for tasks.Next(ctx) {
//		fmt.Println(tasks.Task().TaskID)
//	}
//	if err := tasks.Err(); err != nil {
//		return err
//	}
type TaskIterator struct {
	client  *Client
	request ListTasksRequest
	left    []*Task // of the page at hand
	last    bool    // there is no page after it
	task    *Task
	err     error
}

// IterTasks is all tasks that ListTasks would list from there on, newest first; nil: all there are. The Limit is that
// of a page. Nothing is asked before the first Next.
func (c *Client) IterTasks(request *ListTasksRequest) *TaskIterator {
	tasks := &TaskIterator{client: c}
	if request != nil {
		tasks.request = *request
	}
	return tasks
}

// Next goes to the next task. False: there is none, or Err says what happened; after an error, Next goes on where
// it was.
func (t *TaskIterator) Next(ctx context.Context) bool {
	t.task, t.err = nil, nil
	for len(t.left) == 0 {
		if t.last {
			return false
		}
		page, err := t.client.ListTasks(ctx, &t.request)
		if err != nil {
			t.err = err
			return false
		}
		t.left, t.request.Cursor, t.last = page.Tasks, page.NextCursor, page.NextCursor == ""
	}
	t.task, t.left = t.left[0], t.left[1:]
	return true
}

// Task is the one that Next went to; nil before the first and after the last.
func (t *TaskIterator) Task() *Task { return t.task }

// Err is why Next said false; nil at the end of the list.
func (t *TaskIterator) Err() error { return t.err }
