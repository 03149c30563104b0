package memcgmonitor

import (
	"context"
	"net"
	"os"
	"sync"
)

// A Follower reports the cause of each signal; Close ends it.
type Follower struct {
	connection *net.UnixConn
	// The registration lives as long as this.
	event  event
	events chan Event
	closed chan struct{}
	once   sync.Once
	// The end, valid once events is closed.
	err error
}

func newFollower(connection *net.UnixConn, event event) *Follower {
	f := &Follower{connection: connection, event: event, events: make(chan Event), closed: make(chan struct{})}
	go f.pump()
	return f
}

// WaitEvent waits for the next event; ErrRemoved after removed, which is the last. ErrEnded says
// that the agent has ended: register again.
func (f *Follower) WaitEvent(ctx context.Context) (Event, error) {
	select {
	case event, isOpen := <-f.events:
		if !isOpen {
			return Event{}, f.err
		}
		return event, nil
	case <-ctx.Done():
		return Event{}, ctx.Err()
	}
}

// Events is the channel of the events; it is closed at the end, which Err gives.
func (f *Follower) Events() <-chan Event { return f.events }

// Err returns the end, once Events is closed: ErrRemoved, ErrEnded, os.ErrClosed after Close, or
// what failed.
func (f *Follower) Err() error { return f.err }

// Close ends the registration.
func (f *Follower) Close() error {
	f.once.Do(func() {
		close(f.closed)
		f.connection.Close()
		f.event.file.Close()
	})
	return nil
}

func (f *Follower) pump() {
	defer close(f.events)
	for {
		packet, err := receive(f.connection)
		var event *Event
		if err == nil {
			event, err = decode(packet)
		}
		if err == nil && event == nil {
			err = &AnswerError{string(packet)}
		}
		if err != nil {
			f.err = err
			select {
			case <-f.closed:
				f.err = os.ErrClosed
			default:
			}
			return
		}
		select {
		case f.events <- *event:
		case <-f.closed:
			f.err = os.ErrClosed
			return
		}
		if event.Event == "removed" {
			f.err = ErrRemoved
			return
		}
	}
}
