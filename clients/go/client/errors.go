package client

import (
	"errors"
	"fmt"
	"net/http"
	"time"
)

// What an *APIError is, for errors.Is.
var (
	ErrInvalid      = errors.New("the request is wrong")                // 400, 405, 413, 415, 422, 431
	ErrUnauthorized = errors.New("an API key is needed, or another")    // 401
	ErrForbidden    = errors.New("the API key or the host may not ask") // 403
	ErrNotFound     = errors.New("not found")                           // 404
	ErrConflict     = errors.New("the task's state does not allow it")  // 409
	ErrUnavailable  = errors.New("the server is away or busy")          // 429, 502, 503, 504
)

// FieldError says which field is wrong and why.
type FieldError struct {
	Field  string `json:"field"`
	Reason string `json:"reason"`
}

// APIError is the server's refusal. Code is the status × 100 + n; docs/api.md lists them.
type APIError struct {
	StatusCode int
	Code       int
	Message    string
	RequestID  string
	Errors     []FieldError
	RetryAfter time.Duration // 0 where the server did not say
}

func (e *APIError) Error() string {
	return fmt.Sprintf("async task manager: %s (code %d, request %s)", e.Message, e.Code, e.RequestID)
}

// Is makes errors.Is(err, ErrNotFound) and its siblings work.
func (e *APIError) Is(target error) bool {
	switch e.StatusCode {
	case http.StatusBadRequest, http.StatusMethodNotAllowed, http.StatusRequestEntityTooLarge,
		http.StatusUnsupportedMediaType, http.StatusUnprocessableEntity, http.StatusRequestHeaderFieldsTooLarge:
		return target == ErrInvalid
	case http.StatusUnauthorized:
		return target == ErrUnauthorized
	case http.StatusForbidden:
		return target == ErrForbidden
	case http.StatusNotFound:
		return target == ErrNotFound
	case http.StatusConflict:
		return target == ErrConflict
	}
	return target == ErrUnavailable && isUnavailable(e.StatusCode)
}

func isUnavailable(status int) bool {
	switch status {
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// TransportError says that no whole answer came; whether the request was carried out is unknown.
type TransportError struct{ Err error }

func (e *TransportError) Error() string { return "async task manager: " + e.Err.Error() }

// Unwrap gives the cause: context.DeadlineExceeded, a *net.OpError and so on.
func (e *TransportError) Unwrap() error { return e.Err }

// UnexpectedAnswerError says that what answered does not speak the API: a proxy, or another server.
type UnexpectedAnswerError struct {
	StatusCode int
	Body       string // its beginning
	RetryAfter time.Duration
}

func (e *UnexpectedAnswerError) Error() string {
	return fmt.Sprintf("async task manager: unexpected answer, status %d: %q", e.StatusCode, e.Body)
}

// Is makes errors.Is(err, ErrUnavailable) work for proxies that say so.
func (e *UnexpectedAnswerError) Is(target error) bool {
	return target == ErrUnavailable && isUnavailable(e.StatusCode)
}
