// Receives a group's memory events through the files that cgroup v1 had, with the
// standard library only:
//
//	listen CONTROL_FILE [ARGUMENT]
//	listen /run/memcg-monitor/cgroup/a/memory.usage_in_bytes 512M
//	listen /run/memcg-monitor/cgroup/a/memory.oom_control
//
// Prints `registered`, then `signals: N` each time, then `removed` when the
// group is gone, and exits with 0. Build: go build listen.go
package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

func main() {
	if len(os.Args) < 2 || len(os.Args) > 3 {
		fmt.Fprintln(os.Stderr, "usage: listen CONTROL_FILE [ARGUMENT]")
		os.Exit(2)
	}
	argument := ""
	if len(os.Args) == 3 {
		argument = os.Args[2]
	}
	if err := listen(os.Args[1], argument); err != nil {
		fmt.Fprintln(os.Stderr, explain(err))
		os.Exit(1)
	}
}

func listen(path, argument string) error {
	event, err := eventfd()
	if err != nil {
		return err
	}
	eventControl := filepath.Join(filepath.Dir(path), "cgroup.event_control")
	if err := register(event, path, eventControl, argument); err != nil {
		return err
	}
	fmt.Println("registered")
	for {
		var count [8]byte
		if _, err := event.Read(count[:]); err != nil {
			return err
		}
		// A removal signals once more, when the files are gone already.
		if _, err := os.Lstat(eventControl); errors.Is(err, fs.ErrNotExist) {
			fmt.Println("removed")
			return nil
		} else if err != nil {
			return err
		}
		fmt.Println("signals:", binary.LittleEndian.Uint64(count[:]))
	}
}

// Without blocking, so that Go's own poller waits and no thread is held.
func eventfd() (*os.File, error) {
	fd, _, errno := syscall.RawSyscall(syscall.SYS_EVENTFD2, 0, syscall.O_CLOEXEC|syscall.O_NONBLOCK, 0)
	if errno != 0 {
		return nil, os.NewSyscallError("eventfd2", errno)
	}
	return os.NewFile(fd, "eventfd"), nil
}

// The registration lives as long as the eventfd; both files are done at once.
func register(event *os.File, path, eventControl, argument string) error {
	control, err := os.Open(path)
	if err != nil {
		return err
	}
	defer control.Close()
	file, err := os.OpenFile(eventControl, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	// Fd() of the eventfd would make it block again.
	raw, err := event.SyscallConn()
	if err != nil {
		return err
	}
	var written error
	err = raw.Control(func(fd uintptr) {
		_, written = fmt.Fprintf(file, "%d %d %s", fd, control.Fd(), argument)
	})
	if err != nil {
		return err
	}
	return written
}

func explain(err error) string {
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return err.Error()
	}
	hint := ""
	switch errno {
	case syscall.ENOENT:
		hint = "; is there such a group, and does the agent run?"
	case syscall.EACCES:
		hint = "; the control file must be readable for you"
	case syscall.EINVAL:
		hint = "; is the argument one that this control file takes?"
	case syscall.ENOTCONN:
		hint = "; the agent has died: start it again"
	}
	return fmt.Sprintf("%v (errno %d)%s", err, int(errno), hint)
}
