// Registers what containerd/cgroups can register on one group, and says each
// signal: `containerd DIRECTORY USAGE MEMSW LEVEL`. Events are taken as
// containerd takes them: one epoll, one read, then a look whether the group is
// gone. Ends once every registration has heard of the removal.
package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/containerd/cgroups"
	"golang.org/x/sys/unix"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "containerd:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 4 {
		return fmt.Errorf("usage: containerd DIRECTORY USAGE MEMSW LEVEL")
	}
	usage, err := strconv.ParseUint(args[1], 10, 64)
	if err != nil {
		return err
	}
	memsw, err := strconv.ParseUint(args[2], 10, 64)
	if err != nil {
		return err
	}
	group, err := load(args[0])
	if err != nil {
		return err
	}
	level := cgroups.MemoryPressureLevel(args[3])
	memory := func(event cgroups.MemoryEvent) func() (uintptr, error) {
		return func() (uintptr, error) { return group.RegisterMemoryEvent(event) }
	}
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return err
	}
	names := map[int32]string{}
	for _, kind := range []struct {
		name     string
		register func() (uintptr, error)
	}{
		{"usage", memory(cgroups.MemoryThresholdEvent(usage, false))},
		{"memsw", memory(cgroups.MemoryThresholdEvent(memsw, true))},
		{"pressure", memory(cgroups.MemoryPressureEvent(level, cgroups.DefaultMode))},
		{"oom", group.OOMEventFD},
	} {
		fd, err := kind.register()
		if err != nil {
			return fmt.Errorf("%s: %w", kind.name, err)
		}
		names[int32(fd)] = kind.name
		event := unix.EpollEvent{Fd: int32(fd), Events: unix.EPOLLIN | unix.EPOLLHUP}
		if err := unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, int(fd), &event); err != nil {
			return err
		}
	}
	fmt.Println("registered")
	return hear(group, epoll, names)
}

// The library looks for ROOT/memory/GROUP; a link makes any directory that.
func load(directory string) (cgroups.Cgroup, error) {
	root, err := os.MkdirTemp("", "containerd")
	if err != nil {
		return nil, err
	}
	if err := os.Symlink(filepath.Dir(directory), filepath.Join(root, "memory")); err != nil {
		return nil, err
	}
	hierarchy := func() ([]cgroups.Subsystem, error) {
		return []cgroups.Subsystem{cgroups.NewMemory(root)}, nil
	}
	return cgroups.Load(hierarchy, cgroups.StaticPath("/"+filepath.Base(directory)))
}

func hear(group cgroups.Cgroup, epoll int, names map[int32]string) error {
	events := make([]unix.EpollEvent, 8)
	for len(names) > 0 {
		count, err := unix.EpollWait(epoll, events, -1)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		for _, event := range events[:count] {
			var value [8]byte
			if _, err := unix.Read(int(event.Fd), value[:]); err != nil {
				return err
			}
			signals := binary.LittleEndian.Uint64(value[:])
			if group.State() == cgroups.Deleted {
				fmt.Println(names[event.Fd], "gone", signals)
				delete(names, event.Fd)
				if err := unix.Close(int(event.Fd)); err != nil {
					return err
				}
				continue
			}
			fmt.Println(names[event.Fd], signals)
		}
	}
	return nil
}
