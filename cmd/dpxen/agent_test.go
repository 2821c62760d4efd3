package main

import (
	"context"
	"net"
	"path/filepath"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/dpxen/dpxen/certs"
	"github.com/dpxen/dpxen/internal/rpc"
	agentv1 "github.com/dpxen/dpxen/proto/dpxen/agent/v1"
)

// toldAgent answers what exists, and can do nothing.
type toldAgent struct {
	agentv1.UnimplementedAgentServiceServer
	name string
}

func (a *toldAgent) GetHost(context.Context, *agentv1.GetHostRequest) (*agentv1.GetHostResponse, error) {
	return &agentv1.GetHostResponse{Agent: a.name, Version: "v1", Protocol: rpc.OwnProtocol(), Time: timestamppb.Now(), XapiTransport: "https"}, nil
}

func (a *toldAgent) Check(context.Context, *agentv1.CheckRequest) (*agentv1.CheckResponse, error) {
	return &agentv1.CheckResponse{
		Pool:     &agentv1.Pool{Uuid: testUUID(1), Name: "pool", MasterUuid: testUUID(2), ProductBrand: "XCP-ng", ProductVersion: "8.3.0"},
		HostUuid: testUUID(2),
		Hosts: []*agentv1.Host{
			{Uuid: testUUID(2), Name: "host-1", Address: "192.0.2.1", Live: true, Enabled: true},
			{Uuid: testUUID(3), Name: "host-2", Address: "192.0.2.2", Live: true},
		},
		Srs: []*agentv1.SR{{Uuid: testUUID(4), Name: "nfs", Type: "nfs", Shared: true, PhysicalSize: 1 << 40, PhysicalUtilisation: 1 << 39,
			PluggedHostUuids: []string{testUUID(2), testUUID(3)}}},
		ServerTime: timestamppb.Now(),
	}, nil
}

// vmNames are the VMs of the pool, in the order of their UUIDs; the second has what no terminal should see.
var vmNames = []string{"web-01", "evil\x1b[31m\nname", "büro", "paused", "twin", "twin"}

// vmUUID is that of the first VM with that name; of another one's, some UUID.
func vmUUID(name string) string {
	for i, has := range vmNames {
		if has == name {
			return testUUID(100 + i)
		}
	}
	return testUUID(500)
}

func (a *toldAgent) ListVMs(_ *agentv1.ListVMsRequest, stream grpc.ServerStreamingServer[agentv1.ListVMsResponse]) error {
	page := &agentv1.ListVMsResponse{}
	for i, name := range vmNames {
		vm := &agentv1.VM{Uuid: testUUID(100 + i), Name: name, PowerState: agentv1.PowerState_POWER_STATE_HALTED,
			CapableHostUuids: []string{testUUID(2)}, Disks: []*agentv1.Disk{{Userdevice: "0", VdiUuid: testUUID(200 + i), Name: "root",
				VirtualSize: diskSize, SrUuid: testUUID(4), SrName: "nfs", Type: "user", Mode: "RW", Bootable: true}}}
		switch name {
		case "web-01":
			vm.PowerState, vm.ResidentHostUuid = agentv1.PowerState_POWER_STATE_RUNNING, testUUID(2)
			vm.Tags, vm.CanShutDownCleanly = []string{"gold"}, true
			vm.Disks = append(vm.Disks, &agentv1.Disk{Userdevice: "1", VdiUuid: testUUID(300), Name: "[NOBAK] swap", VirtualSize: 8 << 30,
				SrUuid: testUUID(4), SrName: "nfs", Type: "user", Mode: "RW"})
		case "paused":
			vm.PowerState, vm.ResidentHostUuid = agentv1.PowerState_POWER_STATE_PAUSED, testUUID(2)
		}
		page.Vms = append(page.Vms, vm)
	}
	return stream.Send(page)
}

func scriptAgent(ts *testscript.TestScript, neg bool, args []string) {
	wantArgs(ts, neg, args, 2, "agent DIR NAME")
	dir, name := ts.MkAbs(args[0]), args[1]
	ca, err := certs.OpenCA(dir)
	ts.Check(err)
	cert, key, err := ca.Issue(certs.Identity{Role: certs.Agent, Name: name}, time.Hour)
	ts.Check(err)
	files := certs.Files{CA: filepath.Join(dir, certs.CAFile), Cert: filepath.Join(dir, name+".pem"), Key: filepath.Join(dir, name+".key")}
	ts.Check(certs.WritePair(files.Cert, files.Key, cert, key))
	source, err := certs.NewSource(files)
	ts.Check(err)
	server, err := rpc.NewServer(rpc.ServerOptions{TLS: source.ServerConfig(certs.PeerPolicy{Role: certs.Controller})})
	ts.Check(err)
	agentv1.RegisterAgentServiceServer(server, &toldAgent{name: name})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	done := make(chan error, 1)
	go func() { done <- server.Serve(listener) }()
	ts.Defer(func() {
		server.Stop()
		ts.Check(<-done)
	})
	ts.Setenv(name, listener.Addr().String())
}
