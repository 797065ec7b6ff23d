package client_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"reflect"
	"testing"
	"time"

	"github.com/yourusername/async-task-manager/client"
)

// node is a client of the running node that ATM_URL names.
func node(t *testing.T) (*client.Client, context.Context) {
	t.Helper()
	url := os.Getenv("ATM_URL")
	if url == "" {
		t.Skip("ATM_URL names no running node; `nox -s go` starts one")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return client.New(url, client.WithAPIKey(os.Getenv("ATM_API_KEY"))), ctx
}

// must ends the test at an error.
func must[T any](t *testing.T) func(T, error) T {
	return func(value T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}

func unique(t *testing.T, name string) string {
	return fmt.Sprintf("%s-%s-%d", t.Name(), name, time.Now().UnixNano())
}

func TestATaskIsCreatedAndItsEndAwaited(t *testing.T) {
	c, ctx := node(t)
	payload := map[string]interface{}{"to": "<user@example.com>", "n": 1.5}
	created := must[*client.Task](t)(c.CreateTask(ctx, &client.CreateTaskRequest{
		TaskType: "echo",
		Priority: client.High,
		Payload:  payload,
		Timeout:  90 * time.Second,
		MaxRetry: client.Int(0),
	}))
	if created.TaskID == "" || created.TaskType != "echo" || created.Priority != client.High || created.Replayed {
		t.Fatalf("created: %+v", created)
	}
	task := must[*client.Task](t)(c.Wait(ctx, created.TaskID))
	if task.Status != client.Success || task.Timeout != 90 || task.MaxRetry != 0 || task.Attempt != 1 {
		t.Fatalf("ended: %+v", task)
	}
	if task.StartedAt == nil || task.CompletedAt.Before(*task.StartedAt) || task.CreatedAt.IsZero() {
		t.Fatalf("times: %+v", task)
	}
	var result map[string]interface{}
	if err := json.Unmarshal(task.Result, &result); err != nil || !reflect.DeepEqual(result, payload) {
		t.Fatalf("result %s: %v", task.Result, err)
	}
	again := must[*client.Task](t)(c.GetTask(ctx, created.TaskID))
	if !reflect.DeepEqual(again, task) {
		t.Fatalf("%+v is not %+v", again, task)
	}
}

func TestALogIsALegalPath(t *testing.T) {
	c, ctx := node(t)
	created := must[*client.Task](t)(c.CreateTask(ctx, &client.CreateTaskRequest{TaskType: "echo"}))
	must[*client.Task](t)(c.Wait(ctx, created.TaskID))
	rows := must[[]client.TaskLog](t)(c.GetTaskLogs(ctx, created.TaskID))
	var at client.Status
	for _, row := range rows {
		if row.LogType == "STATE_CHANGE" {
			if row.FromStatus != at || row.CreatedAt.IsZero() || row.Message == "" {
				t.Fatalf("after %q: %+v", at, row)
			}
			at = row.ToStatus
		}
	}
	if at != client.Success {
		t.Fatalf("the log ends in %q", at)
	}
}

func TestAKeyMakesTwoCreatesOne(t *testing.T) {
	c, ctx := node(t)
	request := &client.CreateTaskRequest{TaskType: "echo", IdempotencyKey: unique(t, "key")}
	first := must[*client.Task](t)(c.CreateTask(ctx, request))
	second := must[*client.Task](t)(c.CreateTask(ctx, request))
	if first.TaskID != second.TaskID || first.Replayed || !second.Replayed {
		t.Fatalf("%+v, %+v", first, second)
	}
	_, err := c.CreateTask(ctx, &client.CreateTaskRequest{TaskType: "sleep", IdempotencyKey: request.IdempotencyKey})
	var refused *client.APIError
	if !errors.Is(err, client.ErrConflict) || !errors.As(err, &refused) || refused.Code != 40902 {
		t.Fatal(err)
	}
}

func TestWithoutAKeyEachCreateIsATaskOfItsOwn(t *testing.T) {
	c, ctx := node(t)
	request := &client.CreateTaskRequest{TaskType: "echo"}
	first := must[*client.Task](t)(c.CreateTask(ctx, request))
	second := must[*client.Task](t)(c.CreateTask(ctx, request))
	if first.TaskID == second.TaskID || request.IdempotencyKey != "" {
		t.Fatalf("%+v, %+v, %+v", first, second, request)
	}
}

func TestALongListIsSplitAndItsIdsAreInOrder(t *testing.T) {
	c, ctx := node(t)
	kind := fmt.Sprintf("go.list.%d", time.Now().UnixNano())
	requests := make([]*client.CreateTaskRequest, client.MaxBatch+2)
	for i := range requests {
		requests[i] = &client.CreateTaskRequest{TaskType: kind, Payload: map[string]int{"n": i}}
	}
	ids := must[[]string](t)(c.CreateTasks(ctx, requests))
	if len(ids) != len(requests) {
		t.Fatalf("%d ids", len(ids))
	}
	tasks := c.IterTasks(&client.ListTasksRequest{TaskType: kind, Status: client.Pending, Limit: 400})
	seen := len(ids)
	for tasks.Next(ctx) {
		task := tasks.Task()
		seen--
		if task.TaskID != ids[seen] || string(task.Payload) != fmt.Sprintf(`{"n":%d}`, seen) {
			t.Fatalf("task %d is %+v", seen, task)
		}
	}
	if err := tasks.Err(); err != nil {
		t.Fatal(err)
	}
	if seen != 0 {
		t.Fatalf("%d were not listed", seen)
	}
}

func TestATaskIsScheduledCancelledAndRunAgain(t *testing.T) {
	c, ctx := node(t)
	when := time.Now().Add(time.Hour).Truncate(time.Millisecond)
	created := must[*client.Task](t)(c.CreateTask(ctx, &client.CreateTaskRequest{TaskType: "echo", ScheduledAt: when}))
	task := must[*client.Task](t)(c.GetTask(ctx, created.TaskID))
	if task.Status != client.Pending || task.PendingReason != "scheduled" || !task.ScheduledAt.Equal(when) {
		t.Fatalf("%+v", task)
	}
	for i := 0; i < 2; i++ {
		if !must[bool](t)(c.CancelTask(ctx, created.TaskID)) {
			t.Fatal("it is not cancelled")
		}
	}
	must[*client.Task](t)(c.RetryTask(ctx, created.TaskID))
	if task = must[*client.Task](t)(c.Wait(ctx, created.TaskID)); task.Status != client.Success {
		t.Fatalf("%+v", task)
	}
	if _, err := c.RetryTask(ctx, created.TaskID); !errors.Is(err, client.ErrConflict) {
		t.Fatal(err)
	}
	if _, err := c.CancelTask(ctx, created.TaskID); !errors.Is(err, client.ErrConflict) {
		t.Fatal(err)
	}
}

func TestARunningTaskIsCancelled(t *testing.T) {
	c, ctx := node(t)
	created := must[*client.Task](t)(c.CreateTask(ctx, &client.CreateTaskRequest{
		TaskType: "sleep", Payload: map[string]int{"seconds": 3600},
	}))
	for must[*client.Task](t)(c.GetTask(ctx, created.TaskID)).Status == client.Pending {
		time.Sleep(10 * time.Millisecond)
	}
	if !must[bool](t)(c.CancelTask(ctx, created.TaskID)) {
		t.Fatal("it is not cancelled")
	}
	if task := must[*client.Task](t)(c.Wait(ctx, created.TaskID)); task.Status != client.Cancelled {
		t.Fatalf("%+v", task)
	}
}

func TestWhatIsWrongIsNamed(t *testing.T) {
	c, ctx := node(t)
	_, err := c.CreateTask(ctx, &client.CreateTaskRequest{TaskType: "with blank", Priority: 7})
	var refused *client.APIError
	if !errors.As(err, &refused) || !errors.Is(err, client.ErrInvalid) || refused.RequestID == "" {
		t.Fatal(err)
	}
	fields := map[string]bool{}
	for _, wrong := range refused.Errors {
		fields[wrong.Field] = wrong.Reason != ""
	}
	if !reflect.DeepEqual(fields, map[string]bool{"task_type": true, "priority": true}) {
		t.Fatal(refused.Errors)
	}
	for _, id := range []string{"00000000-0000-7000-8000-000000000000", "a/b?c", "ü"} {
		if _, err := c.GetTask(ctx, id); !errors.Is(err, client.ErrNotFound) {
			t.Fatal(id, err)
		}
	}
}

func TestAWaitEndsWithItsContext(t *testing.T) {
	c, ctx := node(t)
	created := must[*client.Task](t)(c.CreateTask(ctx, &client.CreateTaskRequest{TaskType: "nobody", Delay: time.Hour}))
	short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	if _, err := c.Wait(short, created.TaskID); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
}

func TestWhatIsWrongInALongListIsNamedByItsPlace(t *testing.T) {
	c, ctx := node(t)
	kind := fmt.Sprintf("go.wrong.%d", time.Now().UnixNano())
	list := make([]*client.CreateTaskRequest, client.MaxBatch+2)
	for i := range list {
		list[i] = &client.CreateTaskRequest{TaskType: kind, Delay: time.Hour}
	}
	list[client.MaxBatch+1].Priority = 7
	ids, err := c.CreateTasks(ctx, list)
	var refused *client.APIError
	if !errors.As(err, &refused) || len(ids) != client.MaxBatch {
		t.Fatal(len(ids), err)
	}
	if len(refused.Errors) != 1 || refused.Errors[0].Field != "tasks[1001].priority" {
		t.Fatal(refused.Errors)
	}
}

func TestWorkersAndQueues(t *testing.T) {
	c, ctx := node(t)
	created := must[*client.Task](t)(c.CreateTask(ctx, &client.CreateTaskRequest{TaskType: "echo", Delay: time.Hour}))
	workers := must[[]*client.Worker](t)(c.ListWorkers(ctx))
	echo := 0
	for _, worker := range workers {
		if worker.ID == "" || worker.Name == "" || worker.Capacity < 1 || time.Since(worker.LastHeartbeat) > time.Minute {
			t.Fatalf("%+v", worker)
		}
		for _, kind := range worker.SupportedTypes {
			if kind == "echo" {
				echo++
			}
		}
	}
	if echo == 0 {
		t.Fatalf("nobody supports echo: %+v", workers)
	}
	queues := must[*client.Queues](t)(c.ListQueues(ctx))
	names := []string{}
	for _, queue := range queues.Queues {
		names = append(names, queue.Name)
	}
	if !reflect.DeepEqual(names, []string{"high", "normal", "low"}) || queues.Delayed < 1 {
		t.Fatalf("%+v", queues)
	}
	must[bool](t)(c.CancelTask(ctx, created.TaskID))
}

func TestATaskTypeIsChangedFieldByField(t *testing.T) {
	c, ctx := node(t)
	kind := fmt.Sprintf("go.type:%d", time.Now().UnixNano())
	if _, err := c.GetTaskType(ctx, kind); !errors.Is(err, client.ErrNotFound) {
		t.Fatal(err)
	}
	wanted := &client.TaskTypeSettings{
		TaskType: kind, DefaultTimeout: 1.5, DefaultMaxRetry: 0, RetryStrategy: client.Fixed, RetryDelay: 0,
		BackoffRate: 3, MaxConcurrent: client.Int(2), Enabled: false,
	}
	given := must[*client.TaskTypeSettings](t)(c.PutTaskType(ctx, kind, &client.TaskTypeChanges{
		DefaultTimeout:  client.Ptr(1500 * time.Millisecond),
		DefaultMaxRetry: client.Int(0),
		RetryStrategy:   client.Ptr(client.Fixed),
		RetryDelay:      client.Ptr(time.Duration(0)),
		BackoffRate:     client.Ptr(3.0),
		MaxConcurrent:   client.Int(2),
		Enabled:         client.Ptr(false),
	}))
	if !reflect.DeepEqual(given, wanted) {
		t.Fatalf("%+v", given)
	}
	wanted.MaxConcurrent, wanted.Enabled = nil, true
	must[*client.TaskTypeSettings](t)(c.PutTaskType(ctx, kind, &client.TaskTypeChanges{
		NoCap: true, Enabled: client.Ptr(true),
	}))
	if got := must[*client.TaskTypeSettings](t)(c.GetTaskType(ctx, kind)); !reflect.DeepEqual(got, wanted) {
		t.Fatalf("%+v", got)
	}
	_, err := c.PutTaskType(ctx, kind, &client.TaskTypeChanges{MaxConcurrent: client.Int(0)})
	var refused *client.APIError
	if !errors.As(err, &refused) || refused.Errors[0].Field != "max_concurrent" {
		t.Fatal(err)
	}
	if _, err := c.PutTaskType(ctx, "a b?c", &client.TaskTypeChanges{}); !errors.Is(err, client.ErrInvalid) {
		t.Fatal(err)
	}
}

func TestAHealthyNode(t *testing.T) {
	c, ctx := node(t)
	if alive := must[*client.Health](t)(c.Livez(ctx)); *alive != (client.Health{OK: true, Reason: "alive"}) {
		t.Fatal(alive)
	}
	if ready := must[*client.Health](t)(c.Readyz(ctx)); *ready != (client.Health{OK: true, Reason: "ready"}) {
		t.Fatal(ready)
	}
}

// needs skips the test where the node has no such executor; those of check.py have.
func needs(t *testing.T, c *client.Client, ctx context.Context, taskType string) {
	t.Helper()
	if _, err := c.GetTaskType(ctx, taskType); errors.Is(err, client.ErrNotFound) {
		t.Skipf("nobody supports %s; `nox -s go` starts a node that does", taskType)
	}
}

func TestAChildNamesItsParent(t *testing.T) {
	c, ctx := node(t)
	needs(t, c, ctx, "go.parent")
	created := must[*client.Task](t)(c.CreateTask(ctx, &client.CreateTaskRequest{TaskType: "go.parent"}))
	parent := must[*client.Task](t)(c.Wait(ctx, created.TaskID))
	if parent.Status != client.Success || parent.ParentID != "" {
		t.Fatalf("%+v", parent)
	}
	page := must[*client.TaskPage](t)(c.ListTasks(ctx, &client.ListTasksRequest{ParentID: parent.TaskID}))
	if len(page.Tasks) != 1 || page.Tasks[0].ParentID != parent.TaskID || page.Tasks[0].TaskType != "echo" {
		t.Fatalf("%+v", page.Tasks)
	}
}

func TestErrorsThatCameTogetherAreATree(t *testing.T) {
	c, ctx := node(t)
	needs(t, c, ctx, "go.trouble")
	created := must[*client.Task](t)(c.CreateTask(ctx, &client.CreateTaskRequest{
		TaskType: "go.trouble", MaxRetry: client.Int(5),
	}))
	task := must[*client.Task](t)(c.Wait(ctx, created.TaskID))
	if task.Status != client.Failed || task.Error == nil || task.Error.Retryable || task.Error.Group == nil {
		t.Fatalf("%+v, %+v", task, task.Error)
	}
	tree := task.Error.Group
	if tree.Type != "ExceptionGroup" || len(tree.Exceptions) != 15 || tree.More != 2 {
		t.Fatalf("%+v", tree)
	}
	inner := tree.Exceptions[0]
	if inner.Type != "ExceptionGroup" || len(inner.Exceptions) != 1 || inner.Exceptions[0].Message != "never again" {
		t.Fatalf("%+v", inner)
	}
	if leaf := tree.Exceptions[1]; leaf.Type != "ValueError" || leaf.Message != "0" || leaf.Exceptions != nil {
		t.Fatalf("%+v", leaf)
	}
}
