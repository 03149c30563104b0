package memcgmonitor

import (
	"errors"
	"syscall"
)

// ErrRemoved is the end of a registration whose group is removed.
var ErrRemoved = errors.New("the group is removed")

// ErrEnded is the end of the agent, or of its connection; errors.Is finds it.
var ErrEnded = errors.New("the agent ended")

// A RefusedError is a refusal by the agent; errors.Is finds its Errno.
type RefusedError struct {
	// Errno that the kernel would give.
	Errno syscall.Errno
	// Message of the agent, in one line.
	Message string
}

func (e *RefusedError) Error() string { return e.Message }

func (e *RefusedError) Unwrap() error { return e.Errno }

// An AnswerError is an answer that this version does not understand.
type AnswerError struct{ Answer string }

func (e *AnswerError) Error() string { return "the agent answered " + quoted(e.Answer) }

// An endedError is ErrEnded with what to do.
type endedError struct{ text string }

func (e *endedError) Error() string { return e.text }

func (e *endedError) Is(target error) bool { return target == ErrEnded }

var (
	errUnanswered = &endedError{"the agent ended the connection without an answer: it ended itself, or this user has " +
		"as many connections open as one may have"}
	errFollowedEnded = &endedError{"the agent ended; register again once it is back"}
	errNotKept       = &endedError{"the agent ended; signals go on once an agent that keeps registrations (--supervised, " +
		"or a descriptor store) is back; after any other, close this and register again"}
	errViewGone = &endedError{"the view is gone: the agent ended, or unmounted it; register again once it is back"}
)
