//go:build !linux

package agent

import "errors"

func beNice(int) error { return errors.New("niceness can be set on Linux only") }
