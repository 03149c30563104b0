package memcgmonitor

import "strings"

// Names of control files with a quantity, for On.
const (
	Usage      = "memory.usage_in_bytes"
	Memsw      = "memory.memsw.usage_in_bytes"
	WorkingSet = "memory.working_set_bytes"
	Anon       = "memory.anon_bytes"
)

// A Request is a control file of a group, and the arguments that a v1 client would write behind it.
type Request struct{ File, Args string }

// An Option refines a threshold.
type Option func(*refinement)

type refinement struct {
	on, direction, hysteresis string
	exact                     bool
}

// Up signals only when usage reaches the level.
func Up() Option { return func(r *refinement) { r.direction = "up" } }

// Down signals only when usage falls below the level.
func Down() Option { return func(r *refinement) { r.direction = "down" } }

// Hysteresis counts usage as below again only when it fell by size below the level.
func Hysteresis(size string) Option { return func(r *refinement) { r.hysteresis = size } }

// Exact has the agent refuse where it would sample.
func Exact() Option { return func(r *refinement) { r.exact = true } }

// On chooses the control file whose quantity counts: Usage, Memsw, WorkingSet or Anon.
func On(file string) Option { return func(r *refinement) { r.on = file } }

// Threshold requests crossings of a level: bytes, perhaps with one letter of KMGTPE.
func Threshold(level string, options ...Option) Request {
	r := refinement{on: Usage}
	for _, option := range options {
		option(&r)
	}
	words := []string{level}
	if r.direction != "" {
		words = append(words, r.direction)
	}
	if r.hysteresis != "" {
		words = append(words, "hysteresis="+r.hysteresis)
	}
	if r.exact {
		words = append(words, "exact")
	}
	return Request{r.on, strings.Join(words, ",")}
}

// Percent requests crossings of a share of the effective limit, such as "80" or "99.99".
func Percent(level string, options ...Option) Request { return Threshold(level+"%", options...) }

// OOM requests each time that the group, or a group above it, is out of memory.
func OOM() Request { return Request{File: "memory.oom_control"} }

// Pressure requests windows of reclaim of a level ("low", "medium", "critical"); mode is "",
// "default", "hierarchy" or "local".
func Pressure(level, mode string) Request {
	if mode != "" {
		level += "," + mode
	}
	return Request{"memory.pressure_level", level}
}

// Empty requests each time that the last process of the group and of those below left.
func Empty() Request { return Request{File: "cgroup.procs"} }

// Removal requests the removal of the group, and nothing else: every registration notices that.
func Removal() Request { return Request{Usage, "-1"} }
