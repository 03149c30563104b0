// Package eviction is kubelet's threshold_notifier_linux.go, taken as it is
// when this is built, and the little of its package that it refers to.
package eviction

import "time"

// CgroupNotifier is what the notifier says it is.
type CgroupNotifier interface {
	Start(events chan<- struct{})
	Stop()
}

// How long one wait lasts, and how often kubelet registers anew.
const notifierRefreshInterval = 10 * time.Second
