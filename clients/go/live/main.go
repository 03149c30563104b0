// The program beside a real agent, which `cargo xtask test` starts: one for each client.
//
//	live SOCKET CONTROL_SOCKET GROUP SECOND_GROUP
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"

	memcgmonitor "memcg-monitor/client"
)

func main() {
	if err := run(os.Args[1], os.Args[2], os.Args[3], os.Args[4]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(socket, controlSocket, group, second string) error {
	client := memcgmonitor.Client{Socket: socket, ControlSocket: controlSocket}
	ctx := context.Background()
	request := memcgmonitor.Threshold("8M")
	_, err := client.Register(group, memcgmonitor.Threshold("8MB"))
	var errno syscall.Errno
	if errors.As(err, &errno) {
		fmt.Println("refused", int(errno))
	}
	registration, err := client.Register(group, request)
	if err != nil {
		return err
	}
	follower, err := client.Follow(group, request)
	if err != nil {
		return err
	}
	other, err := client.Register(second, request)
	if err != nil {
		return err
	}
	fmt.Println("registered")
	for event := range follower.Events() {
		signals, err := registration.Wait(ctx)
		switch {
		case errors.Is(err, memcgmonitor.ErrRemoved):
			fmt.Println("signals None", event.Event, "None")
		case err != nil:
			return err
		default:
			fmt.Println("signals", signals, event.Event, *event.Direction)
		}
	}
	if !errors.Is(follower.Err(), memcgmonitor.ErrRemoved) {
		return follower.Err()
	}
	for err = nil; err == nil; {
		_, err = other.Wait(ctx)
	}
	if !errors.Is(err, memcgmonitor.ErrEnded) {
		return err
	}
	fmt.Println("ended")
	return nil
}
