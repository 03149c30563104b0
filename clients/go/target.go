package memcgmonitor

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

const (
	eventControlName = "cgroup.event_control"
	usageFile        = "memory.current"
	procsFile        = "cgroup.procs"
)

var controlFiles = []string{
	Usage, Memsw, WorkingSet, Anon, "memory.oom_control", "memory.pressure_level", procsFile, usageFile,
}

// stat is os.Stat, but for tests.
var stat = os.Stat

// isAgentGone is whether an error is that of a view without its agent; ECONNABORTED comes to a
// call that was under way.
func isAgentGone(err error) bool {
	return errors.Is(err, syscall.ENOTCONN) || errors.Is(err, syscall.ECONNABORTED)
}

// A removalCheck finds whether a group is still there, by the name and identity of a file of it.
type removalCheck struct {
	path  string
	found os.FileInfo
}

func checkOf(path string, file *os.File) (removalCheck, error) {
	found, err := file.Stat()
	return removalCheck{path, found}, err
}

func (c removalCheck) isThere() (bool, error) {
	found, err := stat(c.path)
	// ENODEV: the group went between the look-up and the look.
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENODEV) {
		return false, nil
	}
	return err == nil && os.SameFile(found, c.found), err
}

// A target is an open control file, or the directory of a group that has no such file.
type target struct {
	file   *os.File
	prefix string
	mark   removalCheck
}

// openTarget opens the control file of a group by v1's name, or the directory if it has none.
func openTarget(group, name string) (*target, error) {
	path := filepath.Join(group, name)
	file, missing := os.Open(path)
	if missing == nil {
		return opened(path, file)
	}
	isKnown := false
	for _, known := range controlFiles {
		isKnown = isKnown || known == name
	}
	if !isKnown {
		return nil, missing
	}
	if name == usageFile {
		name = Usage
	}
	// The root has no usage file: cgroup.procs is always there.
	for _, markName := range []string{usageFile, procsFile} {
		markPath := filepath.Join(group, markName)
		file, err := os.Open(markPath)
		if err != nil {
			continue
		}
		if name == Usage && markName == usageFile {
			return opened(markPath, file)
		}
		mark, err := checkOf(markPath, file)
		file.Close()
		if err != nil {
			return nil, err
		}
		directory, err := os.Open(group)
		if err != nil {
			return nil, err
		}
		return &target{directory, name + " ", mark}, nil
	}
	return nil, missing
}

func opened(path string, file *os.File) (*target, error) {
	mark, err := checkOf(path, file)
	if err != nil {
		file.Close()
		return nil, err
	}
	return &target{file, "", mark}, nil
}

func (t *target) args(args string) string { return t.prefix + args }

// oPath is O_PATH, which package syscall lacks.
const oPath = 0x200000

// fstat is os.File.Stat, but for tests.
var fstat = (*os.File).Stat

// hold opens a cgroup.event_control to know its view by: that of the next agent has the same path.
func hold(control string) (*os.File, error) { return os.OpenFile(control, oPath, 0) }

// isOver is whether a held view has ended with its agent; one that was handed on has not.
func isOver(view *os.File) bool {
	if view == nil {
		return false
	}
	_, err := fstat(view)
	return isAgentGone(err)
}

func release(view *os.File) {
	if view != nil {
		view.Close()
	}
}

// exists is whether there is a file of this name that answers.
func exists(path string) bool {
	_, err := stat(path)
	for _, errno := range []syscall.Errno{syscall.ENOENT, syscall.ENOTDIR, syscall.ENODEV} {
		if errors.Is(err, errno) {
			return false
		}
	}
	return !isAgentGone(err)
}

// eventControl returns the cgroup.event_control for a group: its own, or the view's, or "".
func eventControl(group, view, root string, exists func(string) bool) string {
	if own := filepath.Join(group, eventControlName); exists(own) {
		return own
	}
	inner, err := filepath.Rel(root, group)
	if err != nil || inner == ".." || strings.HasPrefix(inner, "../") {
		return ""
	}
	return filepath.Join(view, inner, eventControlName)
}

// hasViewAbove is whether a directory above has a cgroup.event_control: then the view is there.
func hasViewAbove(path string) bool {
	directory := filepath.Dir(path)
	for directory != filepath.Dir(directory) {
		directory = filepath.Dir(directory)
		if exists(filepath.Join(directory, eventControlName)) {
			return true
		}
	}
	return false
}
