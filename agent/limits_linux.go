package agent

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// beNice gives every thread of this process at least that niceness. On Linux it is a thread's own, and a new thread has that
// of the one that made it, so the threads are looked through until none is left to be set.
func beNice(nice int) error {
	for {
		threads, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return err
		}
		set := false
		for _, t := range threads {
			tid, err := strconv.Atoi(t.Name())
			if err != nil {
				return err
			}
			now, err := unix.Getpriority(unix.PRIO_PROCESS, tid)
			if errors.Is(err, unix.ESRCH) || err == nil && 20-now >= nice { // the system call tells 20 less the niceness
				continue
			}
			if err == nil {
				err = unix.Setpriority(unix.PRIO_PROCESS, tid, nice)
			}
			if err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("set niceness %d: %w", nice, err)
			}
			set = true
		}
		if !set {
			return nil
		}
	}
}
