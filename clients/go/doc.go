// Package memcgmonitor is the client of memcg-monitor, which gives cgroup v1's memory
// notifications on cgroup v2 kernels. It needs the standard library alone.
//
//	registration, err := memcgmonitor.Register("/sys/fs/cgroup/a", memcgmonitor.Threshold("512M"))
//	if err != nil {
//		return err
//	}
//	defer registration.Close()
//	for {
//		signals, err := registration.Wait(ctx)
//		if errors.Is(err, memcgmonitor.ErrRemoved) {
//			return nil
//		} else if err != nil {
//			return err
//		}
//		fmt.Println("crossed", signals, "times")
//	}
//
// Register gives a registration that counts signals; Follow gives one that reports the cause of
// each, and needs the rights of an operator. Both have a channel beside the wait with a context.
package memcgmonitor
