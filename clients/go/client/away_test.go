package client_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/yourusername/async-task-manager/client"
)

const id = "0199d3f0-5b6e-7000-8a4c-3f1f2a9d7c11"

// script is a server that gives one answer after the other, the last one for ever, and keeps what it was asked.
type script struct {
	*httptest.Server
	lock sync.Mutex
	kept requestsKept
}

type requestsKept struct {
	asked  []string
	bodies []string
	header http.Header // of the last
}

func serve(t *testing.T, answers ...http.HandlerFunc) *script {
	s := &script{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		s.lock.Lock()
		turn := len(s.kept.asked)
		s.kept.asked = append(s.kept.asked, r.Method+" "+r.URL.RequestURI())
		s.kept.bodies = append(s.kept.bodies, string(body))
		s.kept.header = r.Header
		s.lock.Unlock()
		if turn >= len(answers) {
			turn = len(answers) - 1
		}
		answers[turn](w, r)
	}))
	t.Cleanup(s.Close)
	return s
}

// got is what it was asked so far.
func (s *script) got() requestsKept {
	s.lock.Lock()
	defer s.lock.Unlock()
	return s.kept
}

func (s *script) count() int { return len(s.got().asked) }

func says(status int, body string, headers ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		for i := 0; i < len(headers); i += 2 {
			w.Header().Set(headers[i], headers[i+1])
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

var (
	created = says(201, `{"code":0,"message":"success","data":{"task_id":"`+id+`"}}`)
	away    = says(503, `{"code":50301,"message":"the store is unavailable","request_id":"r","errors":[]}`)
	garbage = says(200, `<html>hello</html>`)
)

// breaks ends the connection without an answer.
func breaks(w http.ResponseWriter, _ *http.Request) {
	if conn, _, err := w.(http.Hijacker).Hijack(); err == nil {
		_ = conn.Close()
	}
}

func quick(url string, options ...client.Option) *client.Client {
	return client.New(url, append([]client.Option{client.WithRetryDelay(time.Millisecond)}, options...)...)
}

func create(c *client.Client) error {
	_, err := c.CreateTask(context.Background(), &client.CreateTaskRequest{TaskType: "echo"})
	return err
}

func TestACreateIsRepeatedWithTheSameKeyUntilTheServerIsBack(t *testing.T) {
	tooMany := says(429, `{"code":42901,"message":"slower","request_id":"r","errors":[]}`)
	s := serve(t, away, breaks, says(502, "bad gateway"), tooMany, created)
	if err := create(quick(s.URL)); err != nil {
		t.Fatal(err)
	}
	keys := map[string]bool{}
	for _, body := range s.got().bodies {
		var sent struct {
			Key string `json:"idempotency_key"`
		}
		if err := json.Unmarshal([]byte(body), &sent); err != nil || sent.Key == "" {
			t.Fatal(body, err)
		}
		keys[sent.Key] = true
	}
	if len(keys) != 1 || s.count() != 5 {
		t.Fatal(keys, s.got().asked)
	}
}

func TestRepetitionsEnd(t *testing.T) {
	s := serve(t, away)
	err := create(quick(s.URL, client.WithRetries(2)))
	if !errors.Is(err, client.ErrUnavailable) || s.count() != 3 {
		t.Fatal(err, s.count())
	}
}

func TestARetryThatWasSentIsNotRepeated(t *testing.T) {
	for _, answer := range []http.HandlerFunc{breaks, away} {
		s := serve(t, answer)
		_, err := quick(s.URL).RetryTask(context.Background(), id)
		if err == nil || s.count() != 1 {
			t.Fatal(err, s.count())
		}
	}
}

func TestWhatTheServerRefusesIsNotRepeated(t *testing.T) {
	for status, kind := range map[int]error{
		400: client.ErrInvalid, 413: client.ErrInvalid, 415: client.ErrInvalid, 422: client.ErrInvalid,
		401: client.ErrUnauthorized, 403: client.ErrForbidden, 404: client.ErrNotFound, 409: client.ErrConflict,
	} {
		s := serve(t, says(status, `{"code":1,"message":"no","request_id":"r","errors":[]}`))
		var refused *client.APIError
		err := create(quick(s.URL))
		if !errors.Is(err, kind) || !errors.As(err, &refused) || refused.RequestID != "r" || s.count() != 1 {
			t.Fatal(status, err, s.count())
		}
	}
}

func TestAServerThatAsksForMoreTimeThanThereIsIsTold(t *testing.T) {
	s := serve(t, says(503, `{"code":50301,"message":"away","request_id":"r","errors":[]}`, "Retry-After", "3600"))
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	_, err := quick(s.URL).GetTask(ctx, id)
	var refused *client.APIError
	if !errors.As(err, &refused) || refused.RetryAfter != time.Hour || s.count() != 1 {
		t.Fatal(err, s.count())
	}
}

func TestGarbageIsNoTask(t *testing.T) {
	for _, body := range []string{"", "<html>", "null", "[]", "{}", `{"code":0}`, `{"code":0,"data":7}`, `{"code":0,"data":{"task_id":`,
		`{"code":0,"data":null}`, `{"code":0,"data":{}}`} {
		s := serve(t, says(200, body))
		_, err := quick(s.URL).GetTask(context.Background(), id)
		var unexpected *client.UnexpectedAnswerError
		if !errors.As(err, &unexpected) || unexpected.StatusCode != 200 || s.count() != 1 {
			t.Fatal(body, err)
		}
	}
}

func TestALongGarbageIsToldInShort(t *testing.T) {
	s := serve(t, says(500, strings.Repeat("ü", 10_000)))
	if err := create(quick(s.URL)); err == nil || len(err.Error()) > 5_000 {
		t.Fatal(err)
	}
}

func TestARedirectIsNotFollowed(t *testing.T) {
	elsewhere := serve(t, created)
	s := serve(t, says(307, "", "Location", elsewhere.URL))
	if err := create(quick(s.URL, client.WithAPIKey("secret"))); err == nil || elsewhere.count() != 0 {
		t.Fatal(err)
	}
}

func TestTheKeyIsShownAndTheOwnHTTPClientAsked(t *testing.T) {
	s := serve(t, created)
	own := &http.Client{Transport: &http.Transport{}}
	if err := create(quick(s.URL+"/", client.WithAPIKey("secret"), client.WithHTTPClient(own))); err != nil {
		t.Fatal(err)
	}
	if s.got().header.Get("Authorization") != "Bearer secret" || s.got().asked[0] != "POST /api/v1/tasks" {
		t.Fatal(s.got().header, s.got().asked)
	}
}

func TestASlowServerIsGivenUp(t *testing.T) {
	hold := make(chan struct{})
	s := serve(t, func(http.ResponseWriter, *http.Request) { <-hold }, garbage)
	defer close(hold)
	_, err := quick(s.URL, client.WithTimeout(50*time.Millisecond), client.WithRetries(0)).GetTask(context.Background(), id)
	var transport *client.TransportError
	if !errors.As(err, &transport) || !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
}

func TestACancelledContextEndsTheCall(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		cancel()
		<-r.Context().Done()
	})
	if _, err := quick(s.URL).GetTask(ctx, id); !errors.Is(err, context.Canceled) || s.count() != 1 {
		t.Fatal(err, s.count())
	}
}

func TestNobodyListening(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	url := "http://" + listener.Addr().String()
	_ = listener.Close()
	_, err = quick(url, client.WithRetries(2)).RetryTask(context.Background(), id)
	var transport *client.TransportError
	if !errors.As(err, &transport) {
		t.Fatal(err)
	}
}

func TestAWaitGoesOnWhileTheTaskDoes(t *testing.T) {
	task := func(status string) http.HandlerFunc {
		return says(200, `{"code":0,"message":"success","data":{"task_id":"`+id+`","status":"`+status+`"}}`)
	}
	s := serve(t, task("PENDING"), breaks, task("PROCESSING"), away, task("FAILED"))
	ended, err := quick(s.URL).Wait(context.Background(), id)
	if err != nil || ended.Status != client.Failed || s.count() != 5 {
		t.Fatal(ended, err, s.got().asked)
	}
	if s.got().asked[0] != "GET /api/v1/tasks/"+id+"?wait=20.000" {
		t.Fatal(s.got().asked[0])
	}
}

func TestARequestThatIsNoneIsRefusedHere(t *testing.T) {
	s := serve(t, created)
	c := quick(s.URL)
	_, err := c.CreateTask(context.Background(), nil)
	_, second := c.CreateTasks(context.Background(), []*client.CreateTaskRequest{nil})
	third := create(quick(":// no url"))
	if err == nil || second == nil || third == nil || s.count() != 0 {
		t.Fatal(err, second, third)
	}
}

func TestWhatIsNoIdOrTypeIsNotAsked(t *testing.T) {
	s := serve(t, says(200, `{"code":0,"data":{"task_id":"`+id+`"}}`))
	c, ctx := quick(s.URL), context.Background()
	for _, wrong := range []string{"", ".", "..", "a/b", "a?b", id + "\n", strings.Repeat("a", 65)} {
		_, got := c.GetTask(ctx, wrong)
		_, waited := c.Wait(ctx, wrong)
		_, cancelled := c.CancelTask(ctx, wrong)
		_, retried := c.RetryTask(ctx, wrong)
		_, told := c.GetTaskLogs(ctx, wrong)
		for _, err := range []error{got, waited, cancelled, retried, told} {
			if !errors.Is(err, client.ErrNotFound) {
				t.Fatal(wrong, err)
			}
		}
	}
	for _, wrong := range []string{"", ".", ".."} {
		if _, err := c.PutTaskType(ctx, wrong, &client.TaskTypeChanges{}); !errors.Is(err, client.ErrInvalid) {
			t.Fatal(wrong, err)
		}
	}
	both := &client.TaskTypeChanges{MaxConcurrent: client.Int(1), NoCap: true}
	if _, err := c.PutTaskType(ctx, "echo", both); !errors.Is(err, client.ErrInvalid) {
		t.Fatal(err)
	}
	if _, err := c.PutTaskType(ctx, "echo", nil); err == nil || s.count() != 0 {
		t.Fatal(err, s.got().asked)
	}
}

func TestGarbageIsNothingElseEither(t *testing.T) {
	for _, data := range []string{`null`, `{}`, `[{}]`, `{"tasks":[null]}`, `{"task_ids":[]}`} {
		s := serve(t, says(200, `{"code":0,"data":`+data+`}`))
		c, ctx := quick(s.URL), context.Background()
		_, page := c.ListTasks(ctx, nil)
		_, ids := c.CreateTasks(ctx, []*client.CreateTaskRequest{{TaskType: "echo"}})
		_, queues := c.ListQueues(ctx)
		_, settings := c.PutTaskType(ctx, "echo", &client.TaskTypeChanges{})
		for _, err := range []error{create(c), page, ids, queues, settings} {
			var unexpected *client.UnexpectedAnswerError
			if !errors.As(err, &unexpected) {
				t.Fatal(data, err)
			}
		}
	}
}

// batch is a server's answer to a batch of so many.
func batch(size int) http.HandlerFunc {
	ids := strings.TrimSuffix(strings.Repeat(`"`+id+`",`, size), ",")
	return says(201, `{"code":0,"message":"success","data":{"task_ids":[`+ids+`]}}`)
}

func requests(size int, payload interface{}) []*client.CreateTaskRequest {
	made := make([]*client.CreateTaskRequest, size)
	for i := range made {
		made[i] = &client.CreateTaskRequest{TaskType: "echo", Payload: payload}
	}
	return made
}

func TestABatchEndsAtItsBytesToo(t *testing.T) {
	// Of tasks of 6 MiB, two go into 16 MiB.
	s := serve(t, batch(2), batch(2), batch(1))
	large := map[string]string{"text": strings.Repeat("<", 6<<20)}
	ids, err := quick(s.URL).CreateTasks(context.Background(), requests(5, large))
	if err != nil || len(ids) != 5 || s.count() != 3 {
		t.Fatal(len(ids), err, s.got().asked)
	}
	for _, body := range s.got().bodies {
		if len(body) > 16<<20 || !json.Valid([]byte(body)) {
			t.Fatal(len(body))
		}
	}
}

func TestARefusedBatchNamesThePlacesInTheWholeList(t *testing.T) {
	refusal := says(422, `{"code":42201,"message":"tasks[3].timeout: too long (and 1 more)","request_id":"r",
		"errors":[{"field":"tasks[3].timeout","reason":"too long"},{"field":"tasks","reason":"odd"}]}`)
	s := serve(t, batch(client.MaxBatch), refusal)
	ids, err := quick(s.URL).CreateTasks(context.Background(), requests(client.MaxBatch+10, nil))
	var refused *client.APIError
	if !errors.As(err, &refused) || len(ids) != client.MaxBatch {
		t.Fatal(len(ids), err)
	}
	wanted := []client.FieldError{{Field: "tasks[1003].timeout", Reason: "too long"}, {Field: "tasks", Reason: "odd"}}
	if !reflect.DeepEqual(refused.Errors, wanted) || !strings.HasPrefix(refused.Message, "tasks[1003].timeout:") {
		t.Fatal(refused)
	}
	mixed := append(requests(2, nil), nil)
	if _, err := quick(s.URL).CreateTasks(context.Background(), mixed); !strings.HasPrefix(err.Error(), "tasks[2]: ") {
		t.Fatal(err)
	}
}

func TestAnIterationGoesOnAfterAnError(t *testing.T) {
	page := func(cursor string) http.HandlerFunc {
		return says(200, `{"code":0,"data":{"tasks":[{"task_id":"`+id+`"}],"next_cursor":`+cursor+`}}`)
	}
	empty := says(200, `{"code":0,"data":{"tasks":[],"next_cursor":"c"}}`)
	s := serve(t, page(`"a"`), away, page(`"b"`), empty, page(`null`))
	list := &client.ListTasksRequest{Status: client.Failed}
	tasks := quick(s.URL, client.WithRetries(0)).IterTasks(list)
	seen, failures := 0, 0
	for {
		if tasks.Next(context.Background()) {
			if seen++; tasks.Task().TaskID != id {
				t.Fatal(tasks.Task())
			}
			continue
		}
		if tasks.Err() == nil {
			break
		}
		failures++
	}
	if seen != 3 || failures != 1 || tasks.Task() != nil || tasks.Next(context.Background()) || list.Cursor != "" {
		t.Fatal(seen, failures, tasks.Err(), list)
	}
	start := "GET /api/v1/tasks?"
	wanted := []string{
		start + "status=FAILED", start + "cursor=a&status=FAILED", start + "cursor=a&status=FAILED",
		start + "cursor=b&status=FAILED", start + "cursor=c&status=FAILED",
	}
	if !reflect.DeepEqual(s.got().asked, wanted) {
		t.Fatal(s.got().asked)
	}
}

func TestHealthIsAskedOnce(t *testing.T) {
	draining := says(503, `{"code":50302,"message":"draining","request_id":"r","errors":[]}`)
	for _, example := range []struct {
		answer http.HandlerFunc
		wanted client.Health
	}{
		{says(200, `{"code":0,"message":"success","data":{"status":"ready"}}`), client.Health{OK: true, Reason: "ready"}},
		{draining, client.Health{OK: false, Reason: "draining"}},
	} {
		s := serve(t, example.answer)
		got, err := quick(s.URL).Readyz(context.Background())
		if err != nil || *got != example.wanted || s.count() != 1 || s.got().asked[0] != "GET /readyz" {
			t.Fatal(got, err, s.got().asked)
		}
	}
	for _, answer := range []http.HandlerFunc{breaks, says(502, "bad gateway")} {
		s := serve(t, answer)
		got, err := quick(s.URL).Livez(context.Background())
		if err != nil || got.OK || got.Reason == "" || s.got().asked[0] != "GET /livez" {
			t.Fatal(got, err, s.got().asked)
		}
	}
	var unexpected *client.UnexpectedAnswerError
	if _, err := quick(serve(t, garbage).URL).Livez(context.Background()); !errors.As(err, &unexpected) {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := quick(serve(t, draining).URL).Readyz(ctx); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}
