package memcgmonitor

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
)

// vectors are what all clients share.
type vectors struct {
	Requests []struct {
		Make, Level, Direction, Hysteresis, On, Mode, File, Args string
		Exact                                                    bool
	}
	Lines []struct {
		Event      int `json:"event_fd"`
		Control    int `json:"control_fd"`
		Args, Line string
		Listen     string
	}
	Targets []struct {
		Has                            []string
		File, Args, Opens, Sends, Mark string
		Errno                          syscall.Errno
	}
	EventControls []struct {
		Group string
		Has   bool
		Path  string
	} `json:"event_controls"`
	FallsBack []struct {
		Errno     syscall.Errno
		FallsBack bool `json:"falls_back"`
	} `json:"falls_back"`
	Answers []packetVector
	Events  []packetVector
}

type packetVector struct {
	Packet, Outcome, Message string
	Errno                    syscall.Errno
	Event                    *Event
}

func readVectors(t *testing.T) vectors {
	t.Helper()
	text, err := os.ReadFile("../vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	var all vectors
	if err := json.Unmarshal(text, &all); err != nil {
		t.Fatal(err)
	}
	for _, count := range []int{
		len(all.Requests), len(all.Lines), len(all.Targets), len(all.EventControls), len(all.FallsBack),
		len(all.Answers), len(all.Events),
	} {
		if count == 0 {
			t.Fatal("a list of vectors is empty")
		}
	}
	return all
}

func TestRequests(t *testing.T) {
	for _, v := range readVectors(t).Requests {
		var options []Option
		switch v.Direction {
		case "up":
			options = append(options, Up())
		case "down":
			options = append(options, Down())
		}
		if v.Hysteresis != "" {
			options = append(options, Hysteresis(v.Hysteresis))
		}
		if v.Exact {
			options = append(options, Exact())
		}
		if v.On != "" {
			options = append(options, On(v.On))
		}
		var got Request
		switch v.Make {
		case "threshold":
			got = Threshold(v.Level, options...)
		case "percent":
			got = Percent(v.Level, options...)
		case "oom":
			got = OOM()
		case "pressure":
			got = Pressure(v.Level, v.Mode)
		case "empty":
			got = Empty()
		case "removal":
			got = Removal()
		default:
			t.Fatalf("no such request: %v", v)
		}
		if (got != Request{v.File, v.Args}) {
			t.Errorf("%+v gives %+v", v, got)
		}
	}
}

func TestLines(t *testing.T) {
	for _, v := range readVectors(t).Lines {
		got := line(v.Event, v.Control, v.Args)
		if got != v.Line {
			t.Errorf("%+v gives %q", v, got)
		}
		var sent, wanted any
		if err := json.Unmarshal(listenRequest(got), &sent); err != nil {
			t.Error(err)
		}
		if err := json.Unmarshal([]byte(v.Listen), &wanted); err != nil || !reflect.DeepEqual(sent, wanted) {
			t.Errorf("%+v gives %v, %v", v, sent, err)
		}
	}
}

func TestTargets(t *testing.T) {
	for _, v := range readVectors(t).Targets {
		group := t.TempDir()
		for _, name := range v.Has {
			if err := os.WriteFile(filepath.Join(group, name), []byte("0\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		target, err := openTarget(group, v.File)
		if v.Errno != 0 {
			if !errors.Is(err, v.Errno) {
				t.Errorf("%+v gives %v", v, err)
			}
			continue
		}
		if err != nil {
			t.Fatalf("%+v gives %v", v, err)
		}
		if target.file.Name() != filepath.Join(group, v.Opens) {
			t.Errorf("%+v opens %s", v, target.file.Name())
		}
		if sends := target.args(v.Args); sends != v.Sends {
			t.Errorf("%+v sends %q", v, sends)
		}
		if target.mark.path != filepath.Join(group, v.Mark) {
			t.Errorf("%+v marks %s", v, target.mark.path)
		}
		target.file.Close()
		if isThere, err := target.mark.isThere(); !isThere {
			t.Errorf("%+v is gone: %v", v, err)
		}
		other := filepath.Join(group, "other")
		if err := os.WriteFile(other, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(other, target.mark.path); err != nil {
			t.Fatal(err)
		}
		if isThere, _ := target.mark.isThere(); isThere {
			t.Errorf("%+v: a namesake is taken for the group", v)
		}
	}
}

func TestEventControls(t *testing.T) {
	for _, v := range readVectors(t).EventControls {
		got := eventControl(v.Group, DefaultView, DefaultCgroupRoot, func(string) bool { return v.Has })
		if got != v.Path {
			t.Errorf("%+v gives %q", v, got)
		}
	}
}

func TestFallsBack(t *testing.T) {
	for _, v := range readVectors(t).FallsBack {
		if got := fallsBack(os.NewSyscallError("connect", v.Errno)); got != v.FallsBack {
			t.Errorf("%+v gives %v", v, got)
		}
	}
}

func TestAnswers(t *testing.T) {
	for _, v := range readVectors(t).Answers {
		checkOutcome(t, v, checkAnswer([]byte(v.Packet)))
	}
}

func TestEvents(t *testing.T) {
	for _, v := range readVectors(t).Events {
		event, err := decode([]byte(v.Packet))
		if !reflect.DeepEqual(event, v.Event) {
			t.Errorf("%s gives %+v", v.Packet, event)
		}
		checkOutcome(t, v, err)
	}
}

func checkOutcome(t *testing.T, v packetVector, err error) {
	t.Helper()
	var refused *RefusedError
	var answer *AnswerError
	isRight := false
	switch v.Outcome {
	case "registered", "listening", "event":
		isRight = err == nil
	case "refused":
		isRight = errors.As(err, &refused) && refused.Errno == v.Errno && refused.Message == v.Message
	case "ended":
		isRight = errors.Is(err, ErrEnded)
	case "not understood":
		isRight = errors.As(err, &answer) && strings.Contains(err.Error(), "the agent answered")
	}
	if !isRight {
		t.Errorf("%+v gives %#v", v, err)
	}
}
