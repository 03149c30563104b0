// Signals of a group's memory, by the client for Go:
//
//	client [-socket PATH] GROUP LEVEL
//	client /sys/fs/cgroup/a 512M
//
// The socket is PATH, else that of the environment variable MEMCG_MONITOR_SOCKET, else the default.
// Prints `registered`, then `signals: N` each time, then `removed` when the group is gone. Fails when
// the agent ends.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"

	memcgmonitor "memcg-monitor/client"
)

func main() {
	socket := flag.String("socket", os.Getenv("MEMCG_MONITOR_SOCKET"), "registration socket of the agent")
	flag.Parse()
	if flag.NArg() != 2 {
		fmt.Fprintln(os.Stderr, "usage: client [-socket PATH] GROUP LEVEL")
		os.Exit(2)
	}
	if err := listen(*socket, flag.Arg(0), flag.Arg(1)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func listen(socket, group, level string) error {
	client := memcgmonitor.Client{Socket: socket}
	registration, err := client.Register(group, memcgmonitor.Threshold(level))
	if err != nil {
		return err
	}
	defer registration.Close()
	fmt.Println("registered")
	for {
		signals, err := registration.Wait(context.Background())
		if errors.Is(err, memcgmonitor.ErrRemoved) {
			fmt.Println("removed")
			return nil
		}
		// The agent's end, too: unless that agent keeps registrations, nothing would come any more.
		if err != nil {
			return err
		}
		fmt.Println("signals:", signals)
	}
}
