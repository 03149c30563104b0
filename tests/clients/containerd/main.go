// Registers what containerd/cgroups can register on one group, and says each
// signal: `containerd DIRECTORY usage:BYTES memsw:BYTES pressure:LEVEL oom`, or
// some of them. Events are taken as containerd takes them: one epoll, one read,
// then a look whether the group is gone. Ends once every registration has heard
// of the removal. `containerd DIRECTORY stat` prints the group's statistics.
package main

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

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
	if len(args) < 2 {
		return fmt.Errorf("usage: containerd DIRECTORY KIND[:ARGUMENT]...")
	}
	group, err := load(args[0])
	if err != nil {
		return err
	}
	if args[1] == "stat" {
		stats, err := group.Stat()
		if err != nil {
			return err
		}
		return json.NewEncoder(os.Stdout).Encode(stats.Memory)
	}
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return err
	}
	names := map[int32]string{}
	for _, word := range args[1:] {
		kind, argument, _ := strings.Cut(word, ":")
		fd, err := register(group, kind, argument)
		if err != nil {
			return fmt.Errorf("%s: %w", kind, err)
		}
		names[int32(fd)] = kind
		event := unix.EpollEvent{Fd: int32(fd), Events: unix.EPOLLIN | unix.EPOLLHUP}
		if err := unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, int(fd), &event); err != nil {
			return err
		}
	}
	fmt.Println("registered")
	return hear(group, epoll, names)
}

func register(group cgroups.Cgroup, kind, argument string) (uintptr, error) {
	switch kind {
	case "usage", "memsw":
		threshold, err := strconv.ParseUint(argument, 10, 64)
		if err != nil {
			return 0, err
		}
		return group.RegisterMemoryEvent(cgroups.MemoryThresholdEvent(threshold, kind == "memsw"))
	case "pressure":
		level := cgroups.MemoryPressureLevel(argument)
		return group.RegisterMemoryEvent(cgroups.MemoryPressureEvent(level, cgroups.DefaultMode))
	case "oom":
		return group.OOMEventFD()
	}
	return 0, fmt.Errorf("no such kind")
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
			// Closed with a signal in it: as containerd's own watcher, no more of that.
			if _, held := names[event.Fd]; !held {
				continue
			}
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
