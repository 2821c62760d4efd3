package controller

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dpxen/dpxen/internal/staging"
	"github.com/dpxen/dpxen/internal/xva"
)

// provenFiles makes n targets whose files take a second each to verify, and returns what was verified, in order.
func provenFiles(t *testing.T, n int) (p *prover, targets []*target, verified func() []string) {
	t.Helper()
	dir := t.TempDir()
	for i := range n {
		path := filepath.Join(dir, fmt.Sprintf("%d.xva", i))
		if err := os.WriteFile(path, []byte("first"), 0o600); err != nil {
			t.Fatal(err)
		}
		targets = append(targets, &target{RestoreItem: RestoreItem{entry: staging.Inspect(path)}})
	}
	var mu sync.Mutex
	var names []string
	p = newProver(slices.Clone(targets))
	p.verify = func(ctx context.Context, e staging.Entry) (VerifyResult, *xva.Report) {
		mu.Lock()
		names = append(names, e.Base())
		mu.Unlock()
		select {
		case <-time.After(time.Second):
			return VerifyResult{OK: true}, &xva.Report{}
		case <-ctx.Done():
			return VerifyResult{Error: ctx.Err().Error()}, nil
		}
	}
	return p, targets, func() []string {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(names)
	}
}

func arrivalOf(t *testing.T, item *target) string {
	t.Helper()
	a, err := item.entry.Arrival()
	if err != nil {
		t.Fatal(err)
	}
	return a.ID
}

// The next file is verified while one is sent, one alone; its turn takes no time then.
func TestTheNextFileIsVerifiedAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, targets, verified := provenFiles(t, 4)
		defer p.end()
		for i, item := range targets {
			began := time.Now()
			if proof := p.of(t.Context(), item, arrivalOf(t, item)); !proof.result.OK || proof.report == nil {
				t.Fatalf("file %d: %+v", i, proof.result)
			}
			if took := time.Since(began); i == 0 && took != time.Second || i > 0 && took != 0 {
				t.Errorf("file %d took %s", i, took)
			}
			time.Sleep(5 * time.Second) // it is sent
			if n := min(i+2, len(targets)); len(verified()) != n {
				t.Errorf("while file %d was sent %d were verified, want %d", i, len(verified()), n)
			}
		}
	})
}

// What was verified ahead counts for the file that was verified only.
func TestAFileThatHasChangedIsVerifiedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, targets, verified := provenFiles(t, 2)
		defer p.end()
		p.of(t.Context(), targets[0], arrivalOf(t, targets[0]))
		time.Sleep(2 * time.Second)
		if err := os.WriteFile(targets[1].entry.Path, []byte("another"), 0o600); err != nil {
			t.Fatal(err)
		}
		p.of(t.Context(), targets[1], arrivalOf(t, targets[1]))
		if len(verified()) != 3 {
			t.Errorf("verified %v", verified())
		}
	})
}

// A turn that comes before the likely one verifies by itself, and a session that ends leaves nothing behind.
func TestTurnsInAnotherOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, targets, verified := provenFiles(t, 3)
		ctx, cancel := context.WithCancel(t.Context())
		for _, i := range []int{2, 1} {
			if proof := p.of(ctx, targets[i], arrivalOf(t, targets[i])); !proof.result.OK {
				t.Errorf("file %d: %+v", i, proof.result)
			}
		}
		if len(verified()) != 3 || !slices.Contains(verified(), "0.xva") {
			t.Errorf("verified %v", verified())
		}
		cancel()
		p.end()
		if proof := p.of(ctx, targets[0], "another"); proof.result.OK {
			t.Error("a file is good after the session's end")
		}
	})
}
