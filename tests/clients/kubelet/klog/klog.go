// Package klog has the one function that the notifier calls.
package klog

import (
	"fmt"
	"os"
)

// Warningf says what went wrong.
func Warningf(format string, args ...interface{}) {
	fmt.Fprintf(os.Stderr, "warning: "+format+"\n", args...)
}
