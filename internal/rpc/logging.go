package rpc

import (
	"context"
	"fmt"
	"runtime/debug"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/logging"
)

// callLogger is hclog as the logging middleware wants it.
func callLogger(l hclog.Logger) logging.Logger {
	return logging.LoggerFunc(func(_ context.Context, level logging.Level, msg string, fields ...any) {
		switch {
		case level >= logging.LevelError:
			l.Error(msg, fields...)
		case level >= logging.LevelWarn:
			l.Warn(msg, fields...)
		case level >= logging.LevelInfo:
			l.Info(msg, fields...)
		default:
			l.Debug(msg, fields...)
		}
	})
}

// logOptions: a line when a call begins and one when it ends, never the messages. What went well is for debugging, since
// the agent logs its work itself.
func logOptions() []logging.Option {
	return []logging.Option{
		logging.WithLogOnEvents(logging.StartCall, logging.FinishCall),
		logging.WithLevels(func(code codes.Code) logging.Level {
			switch code {
			case codes.OK, codes.Canceled:
				return logging.LevelDebug
			}
			return logging.DefaultServerCodeToLevel(code)
		}),
		logging.WithDurationField(logging.DurationToDurationField),
	}
}

// faultLog turns handlers' errors into statuses and logs those whose text is held back, with their id.
type faultLog struct{ hclog.Logger }

func (l faultLog) status(ctx context.Context, method string, err error) error {
	st, id := toStatus(err)
	if id != "" {
		peer, _ := PeerIdentity(ctx)
		l.Error("internal error", "id", id, "method", method, "peer", peer.String(), "err", err)
	}
	return st.Err()
}

func (l faultLog) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	reply, err := handler(ctx, req)
	if err != nil {
		return nil, l.status(ctx, info.FullMethod, err)
	}
	return reply, nil
}

func (l faultLog) stream(srv any, s grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	if err := handler(srv, s); err != nil {
		return l.status(s.Context(), info.FullMethod, err)
	}
	return nil
}

// recovered turns a handler's panic into an error without a reason, so that it is logged and sent as INTERNAL.
func recovered(_ context.Context, p any) error {
	return fmt.Errorf("panic: %v\n%s", p, debug.Stack())
}
