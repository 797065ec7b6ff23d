package client

import (
	"context"
	"errors"
	"net/http"
	"time"
)

// Worker is who works. Address is where its own node serves the API, empty if it does not.
type Worker struct {
	ID             string    `json:"id"`
	Name           string    `json:"name"`
	Address        string    `json:"address"`
	Capacity       int       `json:"capacity"`
	CurrentLoad    int       `json:"current_load"`
	SupportedTypes []string  `json:"supported_types"`
	Draining       bool      `json:"draining"`
	LastHeartbeat  time.Time `json:"last_heartbeat"`
}

// Queue is tasks that are due. Parked are those of them that nothing can run now.
type Queue struct {
	Name      string  `json:"name"`
	Length    int     `json:"length"`
	Parked    int     `json:"parked"`
	OldestAge float64 `json:"oldest_age"` // seconds
}

// Queues is what waits. Delayed are tasks whose time has not come.
type Queues struct {
	Queues  []Queue `json:"queues"`
	Delayed int     `json:"delayed"`
}

func (q *Queues) isWhole() bool { return q.Queues != nil }

// Health is what Livez or Readyz found. Reason is why not, or "alive" or "ready".
type Health struct {
	OK     bool
	Reason string
}

// ListWorkers returns who works.
func (c *Client) ListWorkers(ctx context.Context) ([]*Worker, error) {
	var workers []*Worker
	what := call{method: http.MethodGet, path: "/api/v1/workers", safe: true, into: &workers}
	if _, err := c.call(ctx, what); err != nil {
		return nil, err
	}
	return workers, nil
}

// ListQueues returns what waits, by queue.
func (c *Client) ListQueues(ctx context.Context) (*Queues, error) {
	queues := new(Queues)
	what := call{method: http.MethodGet, path: "/api/v1/queues", safe: true, into: queues}
	if _, err := c.call(ctx, what); err != nil {
		return nil, err
	}
	return queues, nil
}

// Livez finds out whether the server is alive; who cannot be reached is not. It asks once. An error says that the
// context ended, or that what answered is no async task manager.
func (c *Client) Livez(ctx context.Context) (*Health, error) { return c.health(ctx, "/livez") }

// Readyz finds out whether the server should get requests; else as Livez.
func (c *Client) Readyz(ctx context.Context) (*Health, error) { return c.health(ctx, "/readyz") }

func (c *Client) health(ctx context.Context, path string) (*Health, error) {
	var said struct {
		Status string `json:"status"`
	}
	_, err := c.call(ctx, call{method: http.MethodGet, path: path, once: true, into: &said})
	if err == nil {
		return &Health{true, said.Status}, nil
	}
	var refused *APIError
	var unreachable *TransportError
	switch {
	case ctx.Err() != nil:
		return nil, err
	case errors.As(err, &refused):
		return &Health{false, refused.Message}, nil
	case errors.As(err, &unreachable):
		return &Health{false, unreachable.Err.Error()}, nil
	case errors.Is(err, ErrUnavailable): // so says a proxy
		return &Health{false, err.Error()}, nil
	}
	return nil, err
}
