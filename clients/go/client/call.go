package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"math/rand"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

const (
	longestDelay = 10 * time.Second
	longestText  = 512

	// largestAnswer is beyond anything that the API sends: a page ends at some 8 MiB and the task that passes them.
	largestAnswer = 64 << 20
)

// call is one call of the API.
type call struct {
	method string
	path   string
	query  url.Values
	body   []byte        // JSON; nil: none
	extra  time.Duration // that it takes on purpose
	safe   bool          // to be repeated though it may have been carried out
	once   bool          // not to be repeated whatever happens
	into   interface{}   // where the data goes; nil: nowhere
}

type answer struct{ status int }

// checked is data that may lack what makes it what it is.
type checked interface{ isWhole() bool }

type envelope struct {
	Code      *int            `json:"code"`
	Message   string          `json:"message"`
	Data      json.RawMessage `json:"data"`
	RequestID string          `json:"request_id"`
	Errors    []FieldError    `json:"errors"`
}

// call makes the call, and again while that is safe and promises something.
func (c *Client) call(ctx context.Context, what call) (*answer, error) {
	for attempt := 0; ; attempt++ {
		got, err := c.once(ctx, what)
		if err == nil {
			return got, nil
		}
		if ctx.Err() != nil {
			return nil, &TransportError{ctx.Err()}
		}
		if what.once || attempt >= c.retries || !isWorthRepeating(err, what.safe) {
			return nil, err
		}
		// What the server asked for cannot be had within the context: better told at once than waited for.
		delay := c.delay(attempt, err)
		if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) < delay {
			return nil, err
		}
		if sleep(ctx, delay) != nil {
			return nil, &TransportError{ctx.Err()}
		}
	}
}

func isWorthRepeating(err error, safe bool) bool {
	var transport *TransportError
	if errors.As(err, &transport) {
		var dial *net.OpError
		neverSent := errors.As(err, &dial) && dial.Op == "dial"
		return safe || neverSent
	}
	return safe && errors.Is(err, ErrUnavailable)
}

// delay is the time before the next attempt: doubling, half of it by chance, and no less than the server asked for.
func (c *Client) delay(attempt int, err error) time.Duration {
	delay := longestDelay
	if attempt < 16 && c.retryDelay<<attempt < longestDelay {
		delay = c.retryDelay << attempt
	}
	delay = delay/2 + time.Duration(rand.Int63n(int64(delay/2)+1)) // #nosec G404: jitter is no secret
	var refused *APIError
	if errors.As(err, &refused) && refused.RetryAfter > delay {
		return refused.RetryAfter
	}
	var unexpected *UnexpectedAnswerError
	if errors.As(err, &unexpected) && unexpected.RetryAfter > delay {
		return unexpected.RetryAfter
	}
	return delay
}

// once is one attempt.
func (c *Client) once(ctx context.Context, what call) (*answer, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout+what.extra)
	defer cancel()
	target := c.baseURL + what.path
	if len(what.query) > 0 {
		target += "?" + what.query.Encode()
	}
	request, err := http.NewRequestWithContext(ctx, what.method, target, bytes.NewReader(what.body))
	if err != nil {
		return nil, err
	}
	request.Header.Set("Accept", "application/json")
	request.Header.Set("User-Agent", "async-task-manager-go")
	if what.body != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	if c.apiKey != "" {
		request.Header.Set("Authorization", "Bearer "+c.apiKey)
	}
	response, err := c.http.Do(request)
	if err != nil {
		return nil, &TransportError{err}
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, largestAnswer))
	if err != nil {
		return nil, &TransportError{err}
	}
	return read(response, text, what.into)
}

func read(response *http.Response, text []byte, into interface{}) (*answer, error) {
	var told envelope
	status := response.StatusCode
	if json.Unmarshal(text, &told) != nil || told.Code == nil {
		return nil, unexpected(response, text)
	}
	if status >= 300 {
		return nil, &APIError{status, *told.Code, told.Message, told.RequestID, told.Errors, retryAfter(response)}
	}
	if into != nil && !fill(into, told.Data) {
		return nil, unexpected(response, text)
	}
	return &answer{status}, nil
}

// fill says whether the data is what it should be.
func fill(into interface{}, data json.RawMessage) bool {
	if data == nil || string(data) == "null" || json.Unmarshal(data, into) != nil {
		return false
	}
	part, ok := into.(checked)
	return !ok || part.isWhole()
}

// encode makes JSON of what is sent; a payload is kept as it is written.
func encode(value interface{}) ([]byte, error) {
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false)
	err := encoder.Encode(value)
	return bytes.TrimSuffix(text.Bytes(), []byte("\n")), err
}

func unexpected(response *http.Response, text []byte) error {
	return &UnexpectedAnswerError{response.StatusCode, shortened(string(text)), retryAfter(response)}
}

// shortened is the beginning of a text, for an error.
func shortened(text string) string {
	if len(text) > longestText {
		text = text[:longestText]
	}
	return strings.ToValidUTF8(text, "�")
}

func retryAfter(response *http.Response) time.Duration {
	said := response.Header.Get("Retry-After")
	if seconds, err := strconv.ParseUint(said, 10, 16); err == nil {
		return time.Duration(seconds) * time.Second
	}
	if moment, err := http.ParseTime(said); err == nil && time.Until(moment) > 0 {
		return time.Until(moment)
	}
	return 0
}
