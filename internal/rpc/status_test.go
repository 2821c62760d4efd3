package rpc_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/dpxen/dpxen/internal/rpc"
	"github.com/dpxen/dpxen/internal/transfer"
)

func TestEveryReasonCrossesTheWire(t *testing.T) {
	codeOf := map[rpc.Reason]codes.Code{
		rpc.VMNotFound: codes.NotFound, rpc.VMBusy: codes.Unavailable, rpc.VMAbsent: codes.NotFound,
		rpc.SRFull: codes.ResourceExhausted, rpc.HostAuth: codes.FailedPrecondition, rpc.XAPIUnreachable: codes.Unavailable,
		rpc.Moved: codes.Aborted, rpc.HostDown: codes.Unavailable, rpc.Peer: codes.PermissionDenied, rpc.Busy: codes.ResourceExhausted, rpc.SessionGone: codes.Aborted,
		rpc.Superseded: codes.Aborted, rpc.Offset: codes.OutOfRange, rpc.Chunk: codes.DataLoss, rpc.Archive: codes.DataLoss,
		rpc.PowerState: codes.FailedPrecondition, rpc.ShutdownTimeout: codes.FailedPrecondition,
		rpc.LacksFeature: codes.FailedPrecondition, rpc.Claimed: codes.FailedPrecondition, rpc.Conflict: codes.FailedPrecondition,
		rpc.ExportFailed: codes.Aborted, rpc.ImportFailed: codes.Aborted, rpc.UnsupportedVersion: codes.Unimplemented,
		rpc.Invalid: codes.InvalidArgument, rpc.Cancelled: codes.Canceled, rpc.Deadline: codes.DeadlineExceeded,
		rpc.Internal: codes.Internal, "NEWER_THAN_US": codes.Unknown,
	}
	for reason, code := range codeOf {
		sent := fmt.Errorf("outer words: %w", rpc.Errorf(reason, "the %s broke: %w", "thing", io.ErrClosedPipe).About("web-01", "xs1"))
		st := rpc.ToStatus(sent)
		if got := status.Code(st); got != code {
			t.Errorf("%s: code %v, want %v", reason, got, code)
		}
		// What gRPC keeps of it.
		got := rpc.FromStatus(status.FromProto(status.Convert(st).Proto()).Err())
		var e *rpc.Error
		if !errors.As(got, &e) {
			t.Fatalf("%s: got %v", reason, got)
		}
		if e.Reason != reason || e.VM != "web-01" || e.Host != "xs1" || e.Msg != "the thing broke: io: read/write on closed pipe" {
			t.Errorf("%s: got %+v", reason, e)
		}
		if want := "VM web-01, host xs1: the thing broke: io: read/write on closed pipe"; got.Error() != want {
			t.Errorf("%s: says %q, want %q", reason, got, want)
		}
		wrapped := fmt.Errorf("back up: %w", got)
		if !errors.Is(wrapped, &rpc.Error{Reason: reason}) || !errors.Is(wrapped, reason) || errors.Is(wrapped, rpc.Reason("OTHER")) ||
			errors.Is(wrapped, &rpc.Error{Reason: "OTHER"}) || rpc.ReasonOf(wrapped) != reason || status.Code(wrapped) != code {
			t.Errorf("%s: does not match itself, or matches another", reason)
		}
		if again := rpc.FromStatus(wrapped); !errors.Is(again, wrapped) {
			t.Errorf("%s: converted twice: %v", reason, again)
		}
	}
}

func TestSentinelsCrossTheWire(t *testing.T) {
	sentinels := []error{
		transfer.ErrSuperseded, transfer.ErrOffset, transfer.ErrGone, transfer.ErrChecksum, transfer.ErrAborted, transfer.ErrFrame,
	}
	for i, sentinel := range sentinels {
		sent := rpc.ToStatus(fmt.Errorf("secret words: %w", sentinel))
		got := rpc.FromStatus(sent)
		for j, other := range sentinels {
			if errors.Is(got, other) != (i == j) {
				t.Errorf("sent %q: matches %q: %v", sentinel, other, i != j)
			}
		}
		if strings.Contains(got.Error(), "secret") || rpc.ReasonOf(got).Code() == codes.Unknown {
			t.Errorf("sent %q: got %q, code %v", sentinel, got, status.Code(got))
		}
	}
	if rpc.ReasonOf(transfer.ErrOffset) != rpc.Offset || rpc.ReasonOf(io.EOF) != "" {
		t.Error("ReasonOf")
	}
}

func TestRetryDelays(t *testing.T) {
	for _, c := range []struct {
		sent rpc.Error
		want time.Duration
	}{
		{rpc.Error{Reason: rpc.VMBusy}, 2 * time.Second},
		{rpc.Error{Reason: rpc.Busy}, 2 * time.Second},
		{rpc.Error{Reason: rpc.Busy, RetryAfter: 30 * time.Second}, 30 * time.Second},
		{rpc.Error{Reason: rpc.SRFull}, 0},
	} {
		var e *rpc.Error
		if !errors.As(rpc.FromStatus(rpc.ToStatus(&c.sent)), &e) || e.RetryAfter != c.want || e.RetryDelay() != c.want {
			t.Errorf("%v: got %v", c.sent.Reason, e)
		}
	}
}

func TestTextsOfOtherErrorsAreNotSent(t *testing.T) {
	for _, c := range []struct {
		err    error
		code   codes.Code
		reason rpc.Reason
	}{
		{errors.New("password is hunter2"), codes.Internal, rpc.Internal},
		{fmt.Errorf("hunter2: %w", context.Canceled), codes.Canceled, rpc.Cancelled},
		{fmt.Errorf("hunter2: %w", context.DeadlineExceeded), codes.DeadlineExceeded, rpc.Deadline},
		{fmt.Errorf("hunter2: %w", status.Error(codes.Unimplemented, "no such call")), codes.Unimplemented, rpc.UnsupportedVersion},
	} {
		st := rpc.ToStatus(c.err)
		if status.Code(st) != c.code || strings.Contains(st.Error(), "hunter2") {
			t.Errorf("%v: sends %v", c.err, st)
		}
		if got := rpc.ReasonOf(rpc.FromStatus(st)); got != c.reason {
			t.Errorf("%v: reason %v, want %v", c.err, got, c.reason)
		}
	}
	a, b := rpc.ToStatus(errors.New("x")), rpc.ToStatus(errors.New("x"))
	if a.Error() == b.Error() {
		t.Errorf("two faults have one id: %v", a)
	}
	if rpc.ToStatus(nil) != nil || rpc.FromStatus(nil) != nil || !errors.Is(rpc.FromStatus(io.EOF), io.EOF) {
		t.Error("nil and io.EOF must stay what they are")
	}
}

func TestForeignTextIsMadeSendable(t *testing.T) {
	sent := (&rpc.Error{Reason: rpc.Conflict, Msg: strings.Repeat("ä", 5000) + "\xff", VM: "web\xff" + strings.Repeat("x", 9999)})
	var e *rpc.Error
	if !errors.As(rpc.FromStatus(rpc.ToStatus(sent)), &e) {
		t.Fatal("no *Error came back")
	}
	if e.Reason != rpc.Conflict || len(e.Msg) > 4096 || len(e.VM) > 512 || !utf8.ValidString(e.Msg) || !utf8.ValidString(e.VM) ||
		!strings.HasPrefix(e.VM, "web\uFFFDx") || !strings.HasSuffix(e.Msg, "ä…") {
		t.Errorf("got %d bytes of message, VM %.20q", len(e.Msg), e.VM)
	}
}

func TestStatusesOfTheTransport(t *testing.T) {
	const handshake = `connection error: desc = "transport: authentication handshake failed: `
	for _, c := range []struct {
		code   codes.Code
		msg    string
		reason rpc.Reason
		says   string
		retry  bool
	}{
		{codes.Unavailable, `connection error: desc = "transport: Error while dialing: dial tcp 127.0.0.1:1: connect: connection refused"`,
			rpc.Unreachable, "dial tcp 127.0.0.1:1: connect: connection refused", true},
		{codes.Unavailable, `connection error: desc = "error reading from server: EOF"`, rpc.Unreachable, "error reading from server: EOF", true},
		{codes.Unavailable, handshake + `EOF"`, rpc.Unreachable, "authentication handshake failed: EOF", true},
		{codes.Unavailable, handshake + `x509: certificate is valid for xs2, not \"xs1\""`, rpc.Auth,
			`authentication handshake failed: x509: certificate is valid for xs2, not "xs1"`, false},
		{codes.Unavailable, `connection error: desc = "error reading server preface: remote error: tls: bad certificate"`,
			rpc.Auth, "error reading server preface: remote error: tls: bad certificate", false},
		{codes.DeadlineExceeded, "context deadline exceeded", rpc.Deadline, "context deadline exceeded", false},
		{codes.Canceled, "context canceled", rpc.Cancelled, "context canceled", false},
		{codes.Unimplemented, "unknown method X", rpc.UnsupportedVersion, "unknown method X", false},
		{codes.PermissionDenied, "no", rpc.Peer, "no", false},
		{codes.Internal, "odd", rpc.Internal, "odd", false},
		{codes.ResourceExhausted, "too large", rpc.Internal, "too large", false},
	} {
		err := fmt.Errorf("call: %w", rpc.FromStatus(status.Error(c.code, c.msg)))
		var e *rpc.Error
		if !errors.As(err, &e) {
			t.Fatalf("%s: got %v", c.msg, err)
		}
		if e.Reason != c.reason || e.Error() != c.says || status.Code(err) != c.code || rpc.Retryable(err) != c.retry {
			t.Errorf("%v %s: got %v %q %v, retryable %v", c.code, c.msg, e.Reason, e, status.Code(err), rpc.Retryable(err))
		}
	}
	if rpc.FromStatus(io.ErrClosedPipe) != io.ErrClosedPipe { //nolint:errorlint // the very same
		t.Error("an error that is no status must stay what it is")
	}
}

func TestRetryable(t *testing.T) {
	for reason, want := range map[rpc.Reason]bool{
		rpc.Unreachable: true, rpc.Busy: true, rpc.Chunk: true, rpc.Superseded: false, rpc.SessionGone: false, rpc.Peer: false,
		rpc.Auth: false, rpc.Offset: false, rpc.Internal: false, rpc.Cancelled: false,
	} {
		if got := rpc.Retryable(fmt.Errorf("x: %w", &rpc.Error{Reason: reason})); got != want {
			t.Errorf("%s: %v", reason, got)
		}
	}
	if rpc.Retryable(nil) || rpc.Retryable(io.EOF) {
		t.Error("no reason is no reason to try again")
	}
}

// TestHostileStatuses: a status that no dpxen server makes costs no more than one that it does.
func TestHostileStatuses(t *testing.T) {
	const paint = "\x1b[2J\x00"
	for name, tt := range map[string]struct {
		reason string
		want   rpc.Reason
	}{
		"a later one's":    {"LATER_2", "LATER_2"},
		"text":             {"Dear operator", rpc.Internal},
		"control":          {paint, rpc.Internal},
		"none":             {"", rpc.Internal},
		"long":             {strings.Repeat("A", 1000), rpc.Internal},
		"this side's":      {string(rpc.Unreachable), rpc.Internal},
		"this side's also": {string(rpc.Auth), rpc.Internal},
	} {
		st, err := status.New(codes.Aborted, strings.Repeat(paint, 10_000)).WithDetails(
			&errdetails.ErrorInfo{Domain: rpc.ErrorDomain, Reason: tt.reason, Metadata: map[string]string{"vm": strings.Repeat(paint, 1000)}},
			&errdetails.RetryInfo{RetryDelay: &durationpb.Duration{Seconds: 315_576_000_000}})
		if err != nil {
			t.Fatal(err)
		}
		var e *rpc.Error
		if !errors.As(rpc.FromStatus(st.Err()), &e) || e.Reason != tt.want || len(e.Msg) > 4096 || len(e.VM) > 512 || e.RetryAfter > 10*time.Minute {
			t.Errorf("%s: %v, %d bytes, VM of %d, again in %s", name, e.Reason, len(e.Msg), len(e.VM), e.RetryAfter)
		}
	}
	long := status.Error(codes.Internal, strings.Repeat(paint, 10_000))
	var e *rpc.Error
	if !errors.As(rpc.FromStatus(long), &e) || len(e.Msg) > 4096 {
		t.Errorf("%d bytes", len(e.Msg))
	}
}

func TestHolderCrosses(t *testing.T) {
	since := time.Date(2026, 11, 22, 20, 30, 0, 5000, time.UTC)
	for name, h := range map[string]*rpc.Holder{
		"none":      nil,
		"all":       {Controller: "dp1", Session: "s", Agent: "xs1", Since: since, Until: since.Add(time.Minute)},
		"no times":  {Session: "s", Agent: "xs1"},
		"odd names": {Agent: strings.Repeat("x", 2000)},
	} {
		sent := rpc.Errorf(rpc.Claimed, "claimed").About("web-01", "")
		sent.Holder = h
		got := rpc.HolderOf(rpc.FromStatus(rpc.ToStatus(fmt.Errorf("outer: %w", sent))))
		switch {
		case name == "odd names":
			if got == nil || len(got.Agent) > 512 {
				t.Errorf("%s: %+v", name, got)
			}
		case (h == nil) != (got == nil), h != nil && *h != *got:
			t.Errorf("%s: got %+v", name, got)
		}
	}
	if rpc.HolderOf(io.EOF) != nil {
		t.Error("the holder of nothing")
	}
}
