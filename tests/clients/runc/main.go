// Reads a group's statistics as runc's manager of cgroup v1 does for `runc events --stats`, and
// prints them: `runc DIRECTORY`.
package main

import (
	"encoding/json"
	"fmt"
	"os"

	"github.com/opencontainers/runc/libcontainer/cgroups"
	"github.com/opencontainers/runc/libcontainer/cgroups/fs"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "runc:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("usage: runc DIRECTORY")
	}
	// Without it runc opens files of cgroup file systems only.
	cgroups.TestMode = true
	stats := cgroups.NewStats()
	if err := (&fs.MemoryGroup{}).GetStats(args[0], stats); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(stats.MemoryStats)
}
