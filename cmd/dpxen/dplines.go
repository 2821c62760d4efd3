package main

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
)

const (
	// dpLine is the longest line that Data Protector is sent, in bytes.
	dpLine = 190
	// dpSilence is the longest time without a line: Data Protector aborts a session after minutes of it.
	dpSilence = 58 * time.Second
	// dpHeartbeat is the longest time without a line about a session, whose own line says more.
	dpHeartbeat = 50 * time.Second
)

// dpLines writes lines as Data Protector's session messages take them: ASCII, short, no control characters, one at least
// every dpSilence. What is longer goes on in the next line.
type dpLines struct {
	silence time.Duration

	mu   sync.Mutex
	w    io.Writer
	rest []byte // of a line that is not ended yet
	last time.Time

	quit chan struct{}
	wait sync.WaitGroup
}

func newDPLines(w io.Writer, silence time.Duration) *dpLines {
	l := &dpLines{w: w, silence: silence, last: time.Now(), quit: make(chan struct{})}
	l.wait.Go(l.speak)
	return l
}

// speak breaks silences until the end. It goes by the clock alone: a session that hangs is told so by its own limits.
func (l *dpLines) speak() {
	began := time.Now()
	for {
		l.mu.Lock()
		next := l.silence - time.Since(l.last)
		l.mu.Unlock()
		select {
		case <-l.quit:
			return
		case <-time.After(max(next, time.Millisecond)):
		}
		l.mu.Lock()
		if time.Since(l.last) >= l.silence {
			l.print(fmt.Sprintf("dpxen has been at work for %s", took(time.Since(began).Truncate(time.Second))))
		}
		l.mu.Unlock()
	}
}

// Write takes text; complete lines are passed on. It never fails: that nobody reads is no reason to stop.
func (l *dpLines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rest = append(l.rest, p...)
	for {
		line, more, ended := bytes.Cut(l.rest, []byte{'\n'})
		if !ended {
			return len(p), nil
		}
		l.print(string(line))
		l.rest = append([]byte(nil), more...)
	}
}

// print writes one line, in pieces where it is long.
func (l *dpLines) print(line string) {
	l.last = time.Now()
	line = strings.TrimRight(clean(line, true), " ")
	for first := true; first || line != ""; first = false {
		piece := line
		if !first {
			piece = "        " + strings.TrimLeft(piece, " ")
		}
		if len(piece) > dpLine {
			cut := strings.LastIndexByte(piece[:dpLine], ' ')
			if cut < dpLine/2 {
				cut = dpLine
			}
			piece, line = piece[:cut], piece[cut:]
		} else {
			line = ""
		}
		_, _ = io.WriteString(l.w, piece+"\n")
	}
}

// close ends the silence breaker and passes on what has no end of line.
func (l *dpLines) close() {
	close(l.quit)
	l.wait.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.rest) > 0 {
		l.print(string(l.rest))
		l.rest = nil
	}
}
