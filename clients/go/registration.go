package memcgmonitor

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"
	"unsafe"
)

// look is the time between two looks at a view, which does not report that the agent was killed.
var look = time.Second

// A Registration counts signals on an eventfd of its own; Close ends it.
type Registration struct {
	// Route is the path of the socket or of the cgroup.event_control that took the registration.
	Route string

	event      event
	mark       removalCheck
	connection *net.UnixConn
	// The cgroup.event_control to look at, and that file, held; "" and nil where there is none.
	served string
	view   *os.File

	signals  chan uint64
	failures chan error
	ended    chan struct{}
	closed   chan struct{}
	once     sync.Once
	// The end, valid once signals is closed.
	err error
	// What a wait has reported already.
	endOnce sync.Once
}

func newRegistration(
	event event, mark removalCheck, route string, connection *net.UnixConn, view *os.File,
) *Registration {
	served := ""
	if view != nil {
		served = view.Name()
	}
	r := &Registration{
		Route: route, event: event, mark: mark, connection: connection, served: served, view: view,
		signals: make(chan uint64), failures: make(chan error),
		ended: make(chan struct{}), closed: make(chan struct{}),
	}
	counts := make(chan result)
	go r.read(counts)
	go r.pump(counts)
	if connection != nil {
		go r.watchAgent()
	}
	return r
}

// A result is what one read of the eventfd gave.
type result struct {
	count uint64
	err   error
}

// Wait waits for signals, and returns their number since the last call; ErrRemoved once the
// group is gone, the context's error once that is done. ErrEnded says that the agent has ended:
// at the socket that is once; wait again if that agent keeps registrations, or else register
// again. An error of a look at the group's file is reported once, too: the look is tried again,
// and no signal is lost.
func (r *Registration) Wait(ctx context.Context) (uint64, error) {
	ended := r.ended
	select {
	case signals, isOpen := <-r.signals:
		return r.outcome(signals, isOpen)
	default:
	}
	for {
		select {
		case signals, isOpen := <-r.signals:
			return r.outcome(signals, isOpen)
		case err := <-r.failures:
			return 0, err
		case <-ended:
			err := error(nil)
			r.endOnce.Do(func() { err = errNotKept })
			if err != nil {
				return 0, err
			}
			ended = nil
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

func (r *Registration) outcome(signals uint64, isOpen bool) (uint64, error) {
	if !isOpen {
		return 0, r.err
	}
	return signals, nil
}

// Signals is the channel of the numbers of signals; it is closed at the end, which Err gives. It
// goes on while a look at the group's file fails.
func (r *Registration) Signals() <-chan uint64 { return r.signals }

// AgentEnded is closed when the agent at the socket has ended; Signals stays open, for an agent
// that keeps registrations.
func (r *Registration) AgentEnded() <-chan struct{} { return r.ended }

// Err returns the end, once Signals is closed: ErrRemoved, ErrEnded of a view, os.ErrClosed
// after Close, or the failure of the eventfd.
func (r *Registration) Err() error { return r.err }

// Close ends the registration.
func (r *Registration) Close() error {
	r.once.Do(func() {
		close(r.closed)
		r.event.file.Close()
		if r.connection != nil {
			r.connection.Close()
		}
		release(r.view)
	})
	return nil
}

// read reads the eventfd until that fails, as it does after Close.
func (r *Registration) read(counts chan<- result) {
	for {
		var count uint64
		// In the kernel's order of bytes, which is the machine's.
		_, err := r.event.file.Read((*[8]byte)(unsafe.Pointer(&count))[:])
		select {
		case counts <- result{count, err}:
		case <-r.closed:
			return
		}
		if err != nil {
			return
		}
	}
}

// pump hands signals on until the end.
func (r *Registration) pump(counts <-chan result) {
	defer close(r.signals)
	var tick, again <-chan time.Time
	interval := look
	if r.connection == nil && r.served != "" {
		ticker := time.NewTicker(interval)
		defer ticker.Stop()
		tick = ticker.C
	}
	pending := uint64(0)
	var failure error
	var failures chan error
	for {
		var out chan uint64
		if pending > 0 {
			out = r.signals
		}
		select {
		case out <- pending:
			pending = 0
			continue
		case got := <-counts:
			if got.err != nil {
				r.err = got.err
				return
			}
			pending += got.count
		case failures <- failure:
			failures = nil
			continue
		case <-tick:
		case <-again:
			again = nil
		case <-r.closed:
			r.err = os.ErrClosed
			return
		}
		err := r.look()
		switch {
		case errors.Is(err, ErrRemoved) || errors.Is(err, ErrEnded):
			r.err = err
			return
		case err == nil:
			failures = nil
		// What is unclear is no end.
		case failure == nil:
			failures = r.failures
		}
		failure = err
		if err != nil && tick == nil && again == nil {
			again = time.After(interval)
		}
	}
}

// look returns the end of the registration, nil while the group and the view are there, and
// another error where that is unclear.
func (r *Registration) look() error {
	// First: by names the view of the next agent is the same, with or without the group.
	isOver := isOver(r.view)
	if isOver && r.connection == nil {
		return errViewGone
	}
	isThere, err := r.mark.isThere()
	switch {
	case isAgentGone(err):
		return errViewGone
	case err != nil:
		return err
	case !isThere:
		isShown := r.served != "" && filepath.Dir(r.served) == filepath.Dir(r.mark.path)
		if isShown && (isOver || !hasViewAbove(r.mark.path)) {
			return errViewGone
		}
		return ErrRemoved
	// A group that has left a view which is still there is being removed.
	case r.connection == nil && r.served != "" && !exists(r.served) && !hasViewAbove(r.served):
		return errViewGone
	}
	return nil
}

// watchAgent waits for the end of the connection, on which nothing more is sent.
func (r *Registration) watchAgent() {
	r.connection.Read(make([]byte, 1))
	select {
	case <-r.closed:
	default:
		close(r.ended)
	}
}
