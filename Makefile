# dpxen: see README.md. Everything here needs Go, git and make alone; `race` also a C compiler.
GO      ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X main.version=$(VERSION)
FUZZTIME ?= 20s
BINARIES := dpxen dpxen-agent xensim
PACKAGES := ./...

export CGO_ENABLED ?= 0

.PHONY: all build demo test race e2e reliability windows wine test-clients fuzz bench bench-go bench-plan lint lint-go lint-proto gen check-gen tools proto-baseline clean

all: build

## build: static binaries in bin/
build:
	@mkdir -p bin
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/ $(addprefix ./cmd/,$(BINARIES))

## demo: the main job, end to end, on a simulated pool of two hosts
demo: build
	bin/dpxen demo $(DEMOFLAGS)

## test: every package's tests; no race detector, no C compiler, no root
test:
	$(GO) test -count=1 -timeout 8m $(PACKAGES)
	cd bench && $(GO) test -count=1 ./...

## race: the same under the race detector (needs a C compiler)
race:
	CGO_ENABLED=1 $(GO) test -race -count=1 -timeout 20m $(PACKAGES)

## e2e: real processes over mutual TLS against the simulator: faults and crashes; many cells only wait for a silent peer
e2e: build
	$(GO) test -tags e2e -count=1 -parallel 12 -timeout 30m ./e2e/...

## reliability: random histories of real processes from a seed, 5 minutes; RELIABILITYFLAGS='--for 1h --seed N' for more
reliability:
	@mkdir -p bin/reliability
	$(GO) build -trimpath -tags failpoints -ldflags '$(LDFLAGS)' -o bin/reliability/ $(addprefix ./cmd/,$(BINARIES)) ./reliability
	bin/reliability/reliability $(RELIABILITYFLAGS)

## windows: the controller for Windows, bin/dpxen.exe
windows:
	@mkdir -p bin
	GOOS=windows $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/dpxen.exe ./cmd/dpxen

## wine: a night and a restore of bin/dpxen.exe under Wine (installs what is missing on Debian)
wine: build windows
	.ci/wine/run

## test-clients: xensim under Debian's os_xenapi, npm's xen-api, curl, GNU tar and another XVA writer (installs what is missing)
test-clients: build
	.ci/clients/run

## fuzz: every fuzz target for FUZZTIME each
fuzz:
	@set -e; for pkg in $$($(GO) list ./...); do \
	  for target in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz' || true); do \
	    echo "== $$pkg $$target"; \
	    $(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 20x $$pkg; \
	  done; \
	done

## bench: dpxen beside curl on this machine, about 25 minutes; writes docs/performance.md. BENCHFLAGS='-large -rounds 9' for more
bench: build
	cd bench && $(GO) build -trimpath -o ../bin/bench .
	cd bench && ../bin/bench $(BENCHFLAGS)

## bench-plan: dpxen plan over 64 simulated hosts in 8 pools, 1 000 to 10 000 VMs; writes its part of docs/performance.md
bench-plan: build
	cd bench && $(GO) build -trimpath -o ../bin/bench-plan ./plan
	cd bench && ../bin/bench-plan -version $(VERSION) $(BENCHPLANFLAGS)

## bench-go: Go benchmarks, six runs each, in the form that benchstat compares: make bench-go >old.txt; …; bin/benchstat old.txt new.txt
bench-go: bin/benchstat
	@$(GO) test -run '^$$' -bench . -benchmem -count 6 $(PACKAGES)

## lint: style, import rules, the wire contract, generated code
lint: lint-go lint-proto check-gen

lint-go: bin/golangci-lint windows
	bin/golangci-lint run
	cd bench && ../bin/golangci-lint run -c ../.golangci.yml
	GOOS=windows $(GO) vet ./certs/... ./controller/... ./internal/staging/... ./cmd/dpxen

lint-proto: bin/buf
	bin/buf lint
	bin/buf format -d --exit-code
	bin/buf breaking --against proto/baseline.binpb

## gen: Go code from the wire contract
gen: bin/buf
	bin/buf generate

check-gen: gen
	git diff --exit-code -- proto

## proto-baseline: what `buf breaking` compares with; run at each release
proto-baseline: bin/buf
	bin/buf build -o proto/baseline.binpb

tools: bin/buf bin/golangci-lint

bin/buf: tools/go.mod
	@mkdir -p bin
	cd tools && $(GO) build -o ../bin/buf github.com/bufbuild/buf/cmd/buf

bin/benchstat: bench/go.mod
	@mkdir -p bin
	cd bench && $(GO) build -o ../bin/benchstat golang.org/x/perf/cmd/benchstat

bin/golangci-lint: tools/lint/go.mod
	@mkdir -p bin
	cd tools/lint && $(GO) build -o ../../bin/golangci-lint github.com/golangci/golangci-lint/v2/cmd/golangci-lint

clean:
	rm -rf bin
