package memcgmonitor

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

const (
	listening = `{"type":"listening"}`
	crossed   = `{"type":"event","time":1.0,"cgroup":"/a","event":"crossed","signals":1}`
	removed   = `{"type":"event","time":2.0,"cgroup":"/a","event":"removed","signals":1}`
)

// A player plays the agent for one registration.
type player struct {
	t             *testing.T
	group, socket string
	line          chan string
	event         *os.File
	stop          chan struct{}
}

// play sends packets when a line and its two descriptors have come.
func play(t *testing.T, packets ...string) *player {
	t.Helper()
	p := &player{
		t: t, group: t.TempDir(), socket: filepath.Join(t.TempDir(), "socket"),
		line: make(chan string, 1), stop: make(chan struct{}),
	}
	for _, name := range []string{usageFile, procsFile} {
		write(t, filepath.Join(p.group, name))
	}
	listener, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: p.socket, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		connection, err := listener.AcceptUnix()
		if err != nil {
			return
		}
		defer connection.Close()
		text, rights := make([]byte, 4096), make([]byte, 64)
		length, rightsLength, _, _, err := connection.ReadMsgUnix(text, rights)
		if err == nil {
			p.event = eventOf(rights[:rightsLength])
		}
		p.line <- string(text[:length])
		for _, packet := range packets {
			connection.Write([]byte(packet))
		}
		<-p.stop
	}()
	return p
}

// eventOf returns the first of two descriptors that came along; nil where others did.
func eventOf(rights []byte) *os.File {
	messages, err := syscall.ParseSocketControlMessage(rights)
	if err != nil || len(messages) != 1 {
		return nil
	}
	descriptors, err := syscall.ParseUnixRights(&messages[0])
	if err != nil || len(descriptors) != 2 {
		return nil
	}
	syscall.Close(descriptors[1])
	return os.NewFile(uintptr(descriptors[0]), "eventfd")
}

func (p *player) client() *Client { return &Client{Socket: p.socket, ControlSocket: p.socket} }

func (p *player) register() *Registration {
	p.t.Helper()
	registration, err := p.client().Register(p.group, Threshold("8M"))
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { registration.Close() })
	if line := <-p.line; !strings.HasSuffix(line, " 8M") || p.event == nil {
		p.t.Fatalf("%q, %v", line, p.event)
	}
	return registration
}

func (p *player) signal(count uint64) {
	p.t.Helper()
	signal(p.t, p.event, count)
}

func signal(t *testing.T, event *os.File, count uint64) {
	t.Helper()
	var bytes [8]byte
	binary.LittleEndian.PutUint64(bytes[:], count)
	if _, err := event.Write(bytes[:]); err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, path string) {
	t.Helper()
	if err := os.WriteFile(path, []byte("0\n"), 0o600); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, group string) {
	t.Helper()
	if err := os.RemoveAll(group); err != nil {
		t.Fatal(err)
	}
}

func over() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

func wants(t *testing.T, registration *Registration, signals uint64, end error) {
	t.Helper()
	got, err := registration.Wait(context.Background())
	if got != signals || !errors.Is(err, end) {
		t.Fatalf("%d, %v instead of %d, %v", got, err, signals, end)
	}
}

func TestSignalsAreCountedUntilTheGroupIsGone(t *testing.T) {
	p := play(t, "0")
	registration := p.register()
	if registration.Route != p.socket {
		t.Fatal(registration.Route)
	}
	if _, err := registration.Wait(over()); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	p.signal(3)
	wants(t, registration, 3, nil)
	p.signal(2)
	if got := <-registration.Signals(); got != 2 {
		t.Fatal(got)
	}
	remove(t, p.group)
	p.signal(1)
	wants(t, registration, 0, ErrRemoved)
	wants(t, registration, 0, ErrRemoved)
}

func TestTheAgentsEndIsSeenOnce(t *testing.T) {
	p := play(t, "0")
	registration := p.register()
	close(p.stop)
	<-registration.AgentEnded()
	wants(t, registration, 0, ErrEnded)
	// An agent that keeps registrations is back.
	p.signal(5)
	wants(t, registration, 5, nil)
}

func TestAClosedRegistrationEndsItsWait(t *testing.T) {
	p := play(t, "0")
	registration := p.register()
	registration.Close()
	registration.Close()
	wants(t, registration, 0, os.ErrClosed)
}

func TestARefusalCarriesErrnoAndText(t *testing.T) {
	p := play(t, "-22 EINVAL: wrong byte")
	_, err := p.client().Register(p.group, Threshold("1MB"))
	var refused *RefusedError
	if !errors.As(err, &refused) || !errors.Is(err, syscall.EINVAL) || err.Error() != "EINVAL: wrong byte" {
		t.Fatal(err)
	}
}

func TestAFollowerReceivesCausesUpToTheRemoval(t *testing.T) {
	p := play(t, listening, crossed, removed)
	follower, err := p.client().Follow(p.group, OOM())
	if err != nil {
		t.Fatal(err)
	}
	defer follower.Close()
	event, err := follower.WaitEvent(context.Background())
	if err != nil || event.Event != "crossed" {
		t.Fatal(event, err)
	}
	if event := <-follower.Events(); event.Event != "removed" {
		t.Fatal(event)
	}
	if _, isOpen := <-follower.Events(); isOpen || follower.Err() != ErrRemoved {
		t.Fatal(follower.Err())
	}
}

func TestAFollowerNoticesTheContextAndTheAgentsEnd(t *testing.T) {
	p := play(t, listening)
	follower, err := p.client().Follow(p.group, OOM())
	if err != nil {
		t.Fatal(err)
	}
	defer follower.Close()
	if _, err := follower.WaitEvent(over()); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	close(p.stop)
	if _, err := follower.WaitEvent(context.Background()); !errors.Is(err, ErrEnded) {
		t.Fatal(err)
	}
}

// viewed makes a view of files, and registers through it.
func viewed(t *testing.T) (view, group string, registration *Registration) {
	t.Helper()
	real := look
	look = time.Millisecond
	t.Cleanup(func() { look = real })
	directory := t.TempDir()
	view = filepath.Join(directory, "view")
	group = filepath.Join(view, "a")
	if err := os.MkdirAll(group, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{
		filepath.Join(view, eventControlName), filepath.Join(group, eventControlName), filepath.Join(group, Usage),
	} {
		write(t, path)
	}
	client := &Client{Socket: filepath.Join(directory, "no", "socket")}
	registration, err := client.Register(group, Threshold("8M"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { registration.Close() })
	if registration.Route != filepath.Join(group, eventControlName) {
		t.Fatal(registration.Route)
	}
	return view, group, registration
}

func TestTheViewIsWrittenWhereNoSocketIs(t *testing.T) {
	_, group, registration := viewed(t)
	line, err := os.ReadFile(filepath.Join(group, eventControlName))
	if err != nil || !strings.HasSuffix(string(line), " 8M") {
		t.Fatal(string(line), err)
	}
	signal(t, registration.event.file, 2)
	wants(t, registration, 2, nil)
	remove(t, group)
	wants(t, registration, 0, ErrRemoved)
}

func TestAViewThatIsGoneIsTheAgentsEnd(t *testing.T) {
	view, group, registration := viewed(t)
	remove(t, filepath.Join(view, eventControlName))
	remove(t, group)
	wants(t, registration, 0, ErrEnded)
	wants(t, registration, 0, ErrEnded)
}

func TestALookThatFailsIsTriedAgainAndLosesNoSignal(t *testing.T) {
	real := look
	look = time.Millisecond
	t.Cleanup(func() { look = real })
	p := play(t, "0")
	registration := p.register()
	if err := os.Rename(p.group, p.group+"-away"); err != nil {
		t.Fatal(err)
	}
	// A look gives ENOTDIR now, which says nothing of the group.
	write(t, p.group)
	p.signal(3)
	signals, failures := uint64(0), 0
	for signals == 0 || failures == 0 {
		got, err := registration.Wait(context.Background())
		signals += got
		if err != nil {
			failures++
		}
		if err != nil && (failures > 1 || !errors.Is(err, syscall.ENOTDIR)) {
			t.Fatal(failures, err)
		}
	}
	if signals != 3 || failures != 1 {
		t.Fatal(signals, failures)
	}
	remove(t, p.group)
	wants(t, registration, 0, ErrRemoved)
}

func TestAnAbortedViewIsTheAgentsEnd(t *testing.T) {
	t.Cleanup(func() { stat = os.Stat })
	for _, errno := range []syscall.Errno{syscall.ECONNABORTED, syscall.ENOTCONN} {
		// What a look gives while a hung agent is killed, and after that.
		stat = func(path string) (os.FileInfo, error) { return nil, &os.PathError{Op: "stat", Path: path, Err: errno} }
		registration := &Registration{mark: removalCheck{path: "/v/a/" + Usage}, served: "/v/a/" + eventControlName}
		if err := registration.look(); !errors.Is(err, ErrEnded) || exists("/v") {
			t.Fatal(errno, err)
		}
		if err := refusedWrite(&os.PathError{Op: "write", Path: "/v", Err: errno}, false, nil); !errors.Is(err, ErrEnded) {
			t.Fatal(errno, err)
		}
	}
}

func TestAViewOfAnotherAgentAtTheSamePathIsTheAgentsEnd(t *testing.T) {
	real := fstat
	t.Cleanup(func() { fstat = real })
	group := t.TempDir()
	usage, control := filepath.Join(group, Usage), filepath.Join(group, eventControlName)
	write(t, usage)
	write(t, control)
	view, err := hold(control)
	if err != nil {
		t.Fatal(err)
	}
	defer view.Close()
	file, err := os.Open(usage)
	if err != nil {
		t.Fatal(err)
	}
	mark, err := checkOf(usage, file)
	file.Close()
	if err != nil {
		t.Fatal(err)
	}
	registration := &Registration{mark: mark, served: control, view: view}
	if err := registration.look(); err != nil {
		t.Fatal(err)
	}
	for _, errno := range []syscall.Errno{syscall.ECONNABORTED, syscall.ENOTCONN} {
		errno := errno
		// All paths answer, and the view that took the registration does not.
		fstat = func(file *os.File) (os.FileInfo, error) {
			return nil, &os.PathError{Op: "stat", Path: file.Name(), Err: errno}
		}
		if err := registration.look(); !errors.Is(err, ErrEnded) {
			t.Fatal(errno, err)
		}
	}
	// At the socket the end of the view is not that of its group, and the view of the next agent is there.
	write(t, filepath.Join(filepath.Dir(group), eventControlName))
	remove(t, usage)
	registration.connection = &net.UnixConn{}
	if err := registration.look(); !errors.Is(err, ErrEnded) {
		t.Fatal(err)
	}
	fstat = real
	if err := registration.look(); !errors.Is(err, ErrRemoved) {
		t.Fatal(err)
	}
}

func TestTheViewIsHeldAsLongAsTheRegistration(t *testing.T) {
	_, _, registration := viewed(t)
	if _, err := registration.view.Stat(); err != nil {
		t.Fatal(err)
	}
	registration.Close()
	if err := registration.view.Close(); !errors.Is(err, os.ErrClosed) {
		t.Fatal("it was left open", err)
	}
}

func TestARefusedWriteSaysWhereTheReasonIs(t *testing.T) {
	group := t.TempDir()
	write(t, filepath.Join(group, Usage))
	if err := os.Symlink("/dev/full", filepath.Join(group, eventControlName)); err != nil {
		t.Fatal(err)
	}
	client := &Client{Socket: filepath.Join(group, "none")}
	_, err := client.Register(group, Threshold("8M"))
	var refused *RefusedError
	if !errors.As(err, &refused) || refused.Errno != syscall.ENOSPC || !strings.Contains(err.Error(), "agent's log") {
		t.Fatal(err)
	}
	real := fileSystem
	t.Cleanup(func() { fileSystem = real })
	fileSystem = func(*os.File) int64 { return cgroupV1 }
	_, err = client.Register(group, Threshold("8M"))
	if !errors.As(err, &refused) || refused.Errno != syscall.ENOSPC || strings.Contains(err.Error(), "log") {
		t.Fatal(err)
	}
	for _, part := range []string{"kernel's own cgroup v1", "no percent", client.Socket, "no such file"} {
		if !strings.Contains(err.Error(), part) {
			t.Fatal(err)
		}
	}
}

func TestWithoutEitherTheSocketsErrorComes(t *testing.T) {
	p := play(t)
	close(p.stop)
	client := &Client{Socket: filepath.Join(p.group, "none")}
	_, err := client.Register(p.group, Threshold("8M"))
	if !errors.Is(err, syscall.ENOENT) || !strings.Contains(err.Error(), "is `memcg-monitor agent` running?") {
		t.Fatal(err)
	}
	client.Socket, client.View = None, None
	if _, err := client.Register(p.group, Threshold("8M")); err == nil {
		t.Fatal("there is no way")
	}
}
