package main

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"time"
)

// tick is the unit of times in /proc/PID/stat: USER_HZ, which is 100 on every platform of Linux that Go knows.
const tick = time.Second / 100

// cpu is the CPU time of the services until now and of the commands that came to their end. Unlike wall time it tells little
// of what else the machine did.
func (s *site) cpu() time.Duration {
	sum := s.ended
	for _, cmd := range s.running {
		sum += cpuOf(cmd.Process.Pid)
	}
	return sum
}

// cpuOf is the CPU time of a process, in user and kernel mode; 0 where the system does not tell.
func cpuOf(pid int) time.Duration {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	fields := bytes.Fields(data[bytes.LastIndexByte(data, ')')+1:]) // the name may hold blanks
	const user, system = 11, 12
	if len(fields) <= system {
		return 0
	}
	var sum time.Duration
	for _, i := range []int{user, system} {
		if n, err := strconv.ParseInt(string(fields[i]), 10, 64); err == nil {
			sum += time.Duration(n) * tick
		}
	}
	return sum
}
