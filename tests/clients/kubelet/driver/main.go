// Does with kubelet's notifier what kubelet does: `kubelet DIRECTORY THRESHOLD`.
// A line on stdin makes it stop the notifier and start another, as kubelet does
// every ten seconds; a number there is the new threshold. The end of stdin ends it.
package main

import (
	"bufio"
	"fmt"
	"os"
	"strconv"

	"eviction"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Println("failed:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("usage: kubelet DIRECTORY THRESHOLD")
	}
	threshold, err := strconv.ParseInt(args[1], 10, 64)
	if err != nil {
		return err
	}
	events := make(chan struct{})
	go func() {
		for range events {
			fmt.Println("event")
		}
	}()
	var notifier eviction.CgroupNotifier
	renew := func() error {
		if notifier != nil {
			notifier.Stop()
		}
		notifier, err = eviction.NewCgroupNotifier(args[0], "memory.usage_in_bytes", threshold)
		if err != nil {
			return err
		}
		go notifier.Start(events)
		fmt.Println("registered")
		return nil
	}
	if err := renew(); err != nil {
		return err
	}
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		if number, err := strconv.ParseInt(lines.Text(), 10, 64); err == nil {
			threshold = number
		}
		if err := renew(); err != nil {
			return err
		}
	}
	notifier.Stop()
	fmt.Println("stopped")
	return nil
}
