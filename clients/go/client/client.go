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
// answered is no async task manager); see ErrNotFound and its siblings for errors.Is. What could never be sent, such
// as an id with a slash, is told at once.
package client

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"
)

const (
	defaultTimeout    = 30 * time.Second
	defaultRetries    = 5
	defaultRetryDelay = 200 * time.Millisecond

	// cancelPatience is how long a cancel may wait for an executor, beyond the timeout of any request.
	cancelPatience = 30 * time.Second

	// longestWait is how long one request of Wait lasts.
	longestWait = 20 * time.Second

	// waitPause is the least time between two looks of Wait: a server that stops answers its waiters at once.
	waitPause = 200 * time.Millisecond
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
