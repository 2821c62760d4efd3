//go:build !failpoints

package failpoint

// Hit returns an error where the place is armed to fail: never, in this build.
func Hit(string) error { return nil }

// Pass is Hit for places that cannot fail but can end, panic or be late.
func Pass(string) {}
