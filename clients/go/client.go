package memcgmonitor

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"
)

// Places of an agent that was started without options for them.
const (
	DefaultSocket        = "/run/memcg-monitor/event_control.sock"
	DefaultControlSocket = "/run/memcg-monitor/control.sock"
	DefaultView          = "/run/memcg-monitor/cgroup"
	DefaultCgroupRoot    = "/sys/fs/cgroup"
)

// None leaves a way out, as a Client's Socket or View.
const None = "none"

// A Client says where the agent is; empty fields stand for the defaults.
type Client struct {
	Socket, ControlSocket, View, CgroupRoot string
	// DropConnection closes the connection after a registration, and gives up noticing the
	// agent's end: the agent admits 256 connections of a user.
	DropConnection bool
}

// Register registers at an agent at the usual places.
func Register(group string, request Request) (*Registration, error) {
	return (&Client{}).Register(group, request)
}

// Follow follows at an agent at the usual places.
func Follow(group string, request Request) (*Follower, error) {
	return (&Client{}).Follow(group, request)
}

// unreachable has the errnos of connect after which the registration goes through the view.
var unreachable = []syscall.Errno{syscall.ENOENT, syscall.ECONNREFUSED, syscall.EACCES, syscall.EPERM}

func fallsBack(err error) bool {
	for _, errno := range unreachable {
		// Is would take a class of errnos for one.
		var found syscall.Errno
		if errors.As(err, &found) && found == errno {
			return true
		}
	}
	return false
}

// Register registers on group, a directory of a cgroup hierarchy or of the view.
//
// The socket comes first, since it gives the agent's reason with a refusal and reports the
// agent's end. Where it cannot be reached, the cgroup.event_control of the group or of the view
// is written.
func (c *Client) Register(group string, request Request) (*Registration, error) {
	target, err := openTarget(group, request.File)
	if err != nil {
		return nil, err
	}
	defer target.file.Close()
	event, err := newEvent()
	if err != nil {
		return nil, err
	}
	registration, err := c.registerEvent(group, target, event, target.args(request.Args))
	if err != nil {
		event.file.Close()
	}
	return registration, err
}

func (c *Client) registerEvent(group string, target *target, event event, args string) (*Registration, error) {
	line := line(event.fd, int(target.file.Fd()), args)
	control := ""
	if view := or(c.View, DefaultView); view != None {
		control = eventControl(group, view, or(c.CgroupRoot, DefaultCgroupRoot), exists)
	}
	var failed error
	if socket := or(c.Socket, DefaultSocket); socket != None {
		connection, err := connect(socket)
		if err == nil {
			return c.atSocket(connection, socket, control, target, event, line)
		}
		if control == "" || !fallsBack(err) {
			return nil, err
		}
		failed = err
	}
	if control == "" {
		return nil, fmt.Errorf("%s has no cgroup.event_control", group)
	}
	view, err := atView(control, line, failed)
	if err != nil {
		return nil, err
	}
	return newRegistration(event, target.mark, control, nil, view), nil
}

// atView writes the line to a cgroup.event_control, and returns that file, held.
func atView(control, line string, failed error) (*os.File, error) {
	// Before the write: an agent that comes between is seen as another, and not the other way round.
	view, err := hold(control)
	var file *os.File
	if err == nil {
		file, err = os.OpenFile(control, os.O_WRONLY, 0)
	}
	switch {
	case err == nil:
		defer file.Close()
		if _, err = file.WriteString(line); err != nil {
			err = refusedWrite(err, fileSystem(file) == cgroupV1, failed)
		}
	case failed != nil:
		err = fmt.Errorf("%w; %v", failed, err)
	}
	if err != nil {
		release(view)
		return nil, err
	}
	return view, nil
}

func (c *Client) atSocket(
	connection *net.UnixConn, socket, control string, target *target, event event, line string,
) (*Registration, error) {
	var view *os.File
	var err error
	// Only a group of the view itself goes when the view goes.
	if control != "" && filepath.Dir(control) == filepath.Dir(target.mark.path) {
		view, err = hold(control)
	}
	if err == nil {
		err = send(connection, []byte(line), event.fd, int(target.file.Fd()))
	}
	var answer []byte
	if err == nil {
		answer, err = receive(connection)
	}
	if err == nil {
		err = checkAnswer(answer)
	}
	if err != nil || c.DropConnection {
		connection.Close()
		connection = nil
	}
	if err != nil {
		release(view)
		return nil, err
	}
	return newRegistration(event, target.mark, socket, connection, view), nil
}

// Follow registers at the admin socket, which reports the cause of each signal. The socket is
// root's alone unless the agent's options admit others. The view reports no causes, so nothing
// else is tried.
func (c *Client) Follow(group string, request Request) (*Follower, error) {
	target, err := openTarget(group, request.File)
	if err != nil {
		return nil, err
	}
	defer target.file.Close()
	event, err := newEvent()
	if err != nil {
		return nil, err
	}
	connection, err := connect(or(c.ControlSocket, DefaultControlSocket))
	if err != nil {
		event.file.Close()
		return nil, err
	}
	control := int(target.file.Fd())
	packet := listenRequest(line(event.fd, control, target.args(request.Args)))
	err = send(connection, packet, event.fd, control)
	var answer []byte
	if err == nil {
		answer, err = receive(connection)
	}
	if err == nil {
		var early *Event
		if early, err = decode(answer); early != nil {
			err = &AnswerError{string(answer)}
		}
	}
	if err != nil {
		connection.Close()
		event.file.Close()
		return nil, err
	}
	return newFollower(connection, event), nil
}

// cgroupV1 is the type of the kernel's own cgroup v1, CGROUP_SUPER_MAGIC of linux/magic.h.
const cgroupV1 = 0x27e0eb

// fileSystem returns the type of a file's file system, 0 where that fails.
var fileSystem = func(file *os.File) int64 {
	var system syscall.Statfs_t
	if syscall.Fstatfs(int(file.Fd()), &system) != nil {
		return 0
	}
	return int64(system.Type)
}

// refusedWrite makes the error of a write to a cgroup.event_control, after that of the socket.
func refusedWrite(err error, isKernels bool, failed error) error {
	var errno syscall.Errno
	switch {
	case isAgentGone(err):
		return errViewGone
	case !errors.As(err, &errno):
		return err
	case !isKernels:
		return &RefusedError{errno, err.Error() + "; the reason is in the agent's log"}
	}
	agent := "the agent's socket was left out"
	if failed != nil {
		agent = "the agent was not reached: " + failed.Error()
	}
	return &RefusedError{errno, fmt.Sprintf("%v; this is the kernel's own cgroup v1, which knows no percent, "+
		"direction, hysteresis, exact, working set, anon or empty; %s", err, agent)}
}

func or(text, otherwise string) string {
	if text == "" {
		return otherwise
	}
	return text
}

// An event is an eventfd, and its number: os.File.Fd would make it block.
type event struct {
	file *os.File
	fd   int
}

// newEvent makes an eventfd without blocking, so that Go's poller waits and no thread is held.
func newEvent() (event, error) {
	fd, _, errno := syscall.RawSyscall(syscall.SYS_EVENTFD2, 0, syscall.O_CLOEXEC|syscall.O_NONBLOCK, 0)
	if errno != 0 {
		return event{}, os.NewSyscallError("eventfd2", errno)
	}
	return event{os.NewFile(fd, "eventfd"), int(fd)}, nil
}
