package memcgmonitor

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"syscall"
)

const largestAnswer = 256 * 1024

// A Victim of the OOM killer is a process, or the whole group without a Pid. What the agent could
// not learn is nil; memory is in bytes.
type Victim struct {
	Cgroup string `json:"cgroup"`
	// Pid is the process id on the agent's host, OwnPid that in the process's own pid namespace.
	Pid    *uint64 `json:"pid"`
	OwnPid *uint64 `json:"own_pid"`
	Comm   *string `json:"comm"`
	// Command is the command line, its first 1,024 bytes; CommandCut says whether there is more.
	Command     []string `json:"command"`
	CommandCut  bool     `json:"command_cut"`
	Exe         *string  `json:"exe"`
	UID         *uint32  `json:"uid"`
	OomScoreAdj *int32   `json:"oom_score_adj"`
	TotalVM     *uint64  `json:"total_vm"`
	AnonRSS     *uint64  `json:"anon_rss"`
	FileRSS     *uint64  `json:"file_rss"`
	ShmemRSS    *uint64  `json:"shmem_rss"`
	Swap        *uint64  `json:"swap"`
	PageTables  *uint64  `json:"page_tables"`
	// Unit is the innermost unit of systemd in the group's path.
	Unit        *string `json:"unit"`
	PodUID      *string `json:"pod_uid"`
	ContainerID *string `json:"container_id"`
}

// An Event is one event of a followed registration; what it has no value for is nil.
type Event struct {
	// Time in seconds since 1970, UTC.
	Time   float64 `json:"time"`
	Cgroup string  `json:"cgroup"`
	// Event is crossed, oom, oom_kill, oom_group_kill, host_oom_kill, pressure, empty or removed.
	Event string `json:"event"`
	// Signals is what was added to the eventfd: 0 for what only adds detail to an OOM.
	Signals   uint64  `json:"signals"`
	On        *string `json:"on"`
	Threshold *uint64 `json:"threshold"`
	Direction *string `json:"direction"`
	Usage     *uint64 `json:"usage"`
	// Origin is the group whose limit caused the OOM, or whose reclaim made the pressure.
	Origin *string `json:"origin"`
	// Reason of a kill: limit, lowered_limit or host.
	Reason *string `json:"reason"`
	Level  *string `json:"level"`
	Victim *Victim `json:"victim"`
	// ID is the inode number of the group's directory; this and the next five are of a watch.
	ID    uint64  `json:"id"`
	Spec  *string `json:"spec"`
	Limit *uint64 `json:"limit"`
	// Growth in bytes a second, below 0 where usage falls.
	Growth *int64  `json:"growth"`
	Peak   *uint64 `json:"peak"`
	// Late says that it happened before the group could be registered on.
	Late bool `json:"late"`
	// Lost counts the events that this follower was too slow for, just before this one.
	Lost uint64 `json:"lost"`
}

func quoted(text string) string { return strconv.Quote(text) }

func line(event, control int, args string) string {
	return fmt.Sprintf("%d %d %s", event, control, args)
}

func listenRequest(line string) []byte {
	// Strings always have a form in JSON.
	packet, _ := json.Marshal(map[string]string{"listen": line})
	return packet
}

// checkAnswer returns what an answer of the registration socket means, nil for success.
func checkAnswer(packet []byte) error {
	text := string(packet)
	switch text {
	case "0":
		return nil
	case "":
		return errUnanswered
	}
	number, why, _ := strings.Cut(text, " ")
	errno, err := strconv.ParseInt(number, 10, 32)
	if err != nil || errno >= 0 {
		return &AnswerError{text}
	}
	return &RefusedError{syscall.Errno(-errno), why}
}

// decode reads an answer of the admin socket: an event, or nil for listening.
func decode(packet []byte) (*Event, error) {
	if len(packet) == 0 {
		return nil, errFollowedEnded
	}
	var answer struct {
		Type  string
		Errno int
		Why   string
		// Pointers, for what is absent.
		Time    *float64
		Cgroup  *string
		Event   *string
		Signals *uint64
	}
	if json.Unmarshal(packet, &answer) == nil {
		switch answer.Type {
		case "listening":
			return nil, nil
		case "error":
			return nil, &RefusedError{syscall.Errno(answer.Errno), answer.Why}
		case "event":
			event := new(Event)
			isWhole := answer.Time != nil && answer.Cgroup != nil && answer.Event != nil && answer.Signals != nil
			if isWhole && json.Unmarshal(packet, event) == nil {
				return event, nil
			}
		}
	}
	return nil, &AnswerError{string(packet)}
}

// connect connects to one of the agent's sockets.
func connect(path string) (*net.UnixConn, error) {
	connection, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
	if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ECONNREFUSED) {
		return nil, fmt.Errorf("%w (is `memcg-monitor agent` running?)", err)
	}
	return connection, err
}

// send sends one packet with descriptors.
func send(connection *net.UnixConn, packet []byte, descriptors ...int) error {
	_, _, err := connection.WriteMsgUnix(packet, syscall.UnixRights(descriptors...), nil)
	return err
}

// receive receives one packet; it is empty when the agent ended the connection.
func receive(connection *net.UnixConn) ([]byte, error) {
	packet := make([]byte, largestAnswer)
	length, err := connection.Read(packet)
	if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
		return nil, nil
	}
	return packet[:length], err
}
