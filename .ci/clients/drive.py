"""Drives a running xensim with other people's clients: os_xenapi, curl and GNU tar."""
import http.client
import json
import os
import socket
import subprocess
import sys
import urllib.parse
import xmlrpc.client

from harness import check, content, curl, disks, equal, export, failure, login, main, MASTER, MEMBER, members, MIB, PASSWORD, remove, upload, url, USER, vm_named, wait, WORK, XenAPI


@check
def login_and_api_version():
    s = login()
    equal(s.API_version, "2.21", "API version")
    equal(len(s.xenapi.pool.get_all()), 1, "pools")
    s.xenapi.session.logout()


@check
def wrong_password():
    s = XenAPI.Session(MASTER["http"])
    details = failure(s.login_with_password, USER, "wrong")
    equal(details[0], "SESSION_AUTHENTICATION_FAILED", "error")


@check
def login_on_member():
    s = XenAPI.Session(MEMBER["http"])
    details = failure(s.login_with_password, USER, PASSWORD)
    equal(details, ["HOST_IS_SLAVE", urllib.parse.urlsplit(MASTER["http"]).netloc], "error")


@check
def login_over_socket():
    class Connection(http.client.HTTPConnection):
        def connect(self):
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.sock.connect(MASTER["socket"])

    class Transport(xmlrpc.client.Transport):
        def make_connection(self, host):
            return Connection("localhost")

    s = XenAPI.Session("http://localhost/", transport=Transport())
    s.login_with_password("root", "")
    equal(len(s.xenapi.host.get_all()), 2, "hosts")
    s.xenapi.session.logout()


@check
def all_records_of_all_classes():
    s = login()
    proxy = xmlrpc.client.ServerProxy(MASTER["http"])
    methods = proxy.system.listMethods()
    classes = [m[:-len(".get_all_records")] for m in methods if m.endswith(".get_all_records") and not m.startswith("Async.")]
    for needed in ("VM", "VDI", "VBD", "VIF", "SR", "PBD", "host", "pool", "network", "task", "message", "console", "VM_metrics"):
        if needed not in classes:
            raise AssertionError("no get_all_records of " + needed)
    for c in classes:
        records = getattr(s.xenapi, c).get_all_records()
        if c != "task" and set(records) != set(getattr(s.xenapi, c).get_all()):
            raise AssertionError("get_all of %s differs" % c)
        for ref, r in list(records.items())[:2]:
            if c not in ("task", "message"):
                equal(getattr(s.xenapi, c).get_by_uuid(r["uuid"]), ref, c)
    s.xenapi.session.logout()


@check
def snapshot_and_async():
    s = login()
    vm = vm_named(s, "web-01", "Running")
    task = s.xenapi.Async.VM.snapshot(vm, "by a client")
    snap = wait(s, task)["result"]
    snap = xmlrpc.client.loads("<params><param>%s</param></params>" % snap)[0][0]
    r = s.xenapi.VM.get_record(snap)
    equal((r["is_a_snapshot"], r["is_a_template"], r["snapshot_of"]), (True, True, vm), "snapshot")
    equal(snap in s.xenapi.VM.get_snapshots(vm), True, "snapshots")
    equal(failure(s.xenapi.VM.start, snap, False, False)[0], "VM_IS_SNAPSHOT", "start")
    remove(s, snap)
    equal(failure(s.xenapi.VM.get_uuid, snap), ["HANDLE_INVALID", "VM", snap], "error")
    s.xenapi.session.logout()


@check
def power_states():
    s = login()
    vm = vm_named(s, "archive")
    equal(failure(s.xenapi.VM.clean_shutdown, vm), ["VM_BAD_POWER_STATE", vm, "running", "halted"], "error")
    s.xenapi.VM.start(vm, False, False)
    equal(s.xenapi.VM.get_power_state(vm), "Running", "state")
    s.xenapi.VM.clean_shutdown(vm)
    equal(s.xenapi.VM.get_power_state(vm), "Halted", "state")
    s.xenapi.session.logout()


@check
def task_cancel():
    s = login()
    task = s.xenapi.task.create("mine", "")
    s.xenapi.task.cancel(task)
    equal(s.xenapi.task.get_status(task) in ("cancelling", "cancelled", "pending"), True, "status")
    s.xenapi.task.destroy(task)
    s.xenapi.session.logout()


@check
def events():
    s = login()
    listen = getattr(s.xenapi.event, "from")
    first = listen(["vm"], "", 5.0)
    equal({e["operation"] for e in first["events"]}, {"add"}, "first events")
    equal(len(first["events"]), len(s.xenapi.VM.get_all()), "VMs told")
    vm = vm_named(s, "archive")
    s.xenapi.VM.add_to_other_config(vm, "client", "was here")
    then = listen(["vm"], first["token"], 5.0)
    mods = [e for e in then["events"] if e["ref"] == vm]
    equal([e["operation"] for e in mods], ["mod"], "events")
    equal(mods[0]["snapshot"]["other_config"]["client"], "was here", "snapshot")
    quiet = listen(["vm/" + "OpaqueRef:none"], then["token"], 0.5)
    equal(quiet["events"], [], "events of nothing")
    s.xenapi.VM.remove_from_other_config(vm, "client")
    s.xenapi.session.logout()


@check
def other_config():
    s = login()
    vm = vm_named(s, "archive")
    s.xenapi.VM.add_to_other_config(vm, "k", "v & <w>")
    equal(s.xenapi.VM.get_other_config(vm)["k"], "v & <w>", "value")
    equal(failure(s.xenapi.VM.add_to_other_config, vm, "k", "x"), ["MAP_DUPLICATE_KEY", "VM", "other_config", vm, "k"], "error")
    s.xenapi.VM.remove_from_other_config(vm, "k")
    s.xenapi.VM.remove_from_other_config(vm, "k")
    equal("k" in s.xenapi.VM.get_other_config(vm), False, "key")
    s.xenapi.session.logout()


@check
def errors_as_a_client_sees_them():
    s = login()
    equal(failure(s.xenapi.VM.frobnicate), ["MESSAGE_METHOD_UNKNOWN", "VM.frobnicate"], "unknown")
    equal(failure(s.xenapi.VM.get_record)[0], "MESSAGE_PARAMETER_COUNT_MISMATCH", "count")
    equal(failure(s.xenapi.VM.get_by_uuid, "no"), ["UUID_INVALID", "VM", "no"], "uuid")
    s.xenapi.session.logout()


@check
def logout_ends_the_session():
    s = login()
    ref = s.handle
    s.xenapi.session.logout()
    proxy = xmlrpc.client.ServerProxy(MASTER["http"])
    equal(proxy.VM.get_all(ref), {"Status": "Failure", "ErrorDescription": ["SESSION_INVALID", ref]}, "answer")


@check
def export_listed_and_extracted_by_tar():
    s = login()
    path = export(s, vm_named(s, "archive"), "archive.xva", more=("-L", "-k"))
    names = members(path)
    equal(names[0], "ova.xml", "first")
    for n in names[1::2]:
        equal(n + ".xxhash" in names, True, n)
    equal(os.path.getsize(path) % 512, 0, "size")
    with open(path, "rb") as f:
        f.seek(-1024, os.SEEK_END)
        equal(f.read(), bytes(1024), "end")
    ova, sums = content(path)
    equal(int(ova["version"]["export_vsn"]), 2, "export_vsn")
    equal(len(sums), 2, "disks")
    s.xenapi.session.logout()


@check
def compressed_exports():
    s = login()
    vm = vm_named(s, 'Büro/"ERP": *Köln*? <ß>')
    plain = export(s, vm, "plain.xva")
    gz = export(s, vm, "gzip.xva", use_compression="true")
    zst = export(s, vm, "zstd.xva", use_compression="zstd", scheme="https", more=("-k",))
    equal(open(gz, "rb").read(2), b"\x1f\x8b", "gzip's magic")
    equal(open(zst, "rb").read(4), b"\x28\xb5\x2f\xfd", "zstd's magic")
    want = list(content(plain)[1].values())
    equal(list(content(gz, "-z")[1].values()), want, "contents in gzip")
    equal(list(content(zst, "--zstd")[1].values()), want, "contents in zstd")
    s.xenapi.session.logout()


@check
def export_head_over_basic_auth():
    s = login()
    vm = vm_named(s, 'Büro/"ERP": *Köln*? <ß>')
    head = os.path.join(WORK, "head")
    curl("-D", head, "-u", USER + ":" + PASSWORD, "-o", os.path.join(WORK, "basic.xva"), url(MASTER, "/export", uuid=s.xenapi.VM.get_uuid(vm)))
    lines = open(head, encoding="utf8").read().split("\n")
    equal(lines[0].strip(), "HTTP/1.0 200 OK", "status")
    equal([l.split(":")[0] for l in lines[1:7]],
          ["Connection", "Cache-Control", "task-id", "Server", "content-type", "Content-Disposition"], "headers")
    status = curl("-o", "/dev/null", "-w", "%{http_code}", url(MASTER, "/export", uuid=s.xenapi.VM.get_uuid(vm)))
    equal(status, "401", "without credentials")
    s.xenapi.session.logout()


@check
def running_vm_is_refused():
    s = login()
    vm = vm_named(s, "web-01", "Running")
    page = curl(url(MASTER, "/export", ref=vm, session_id=s.handle))
    equal("VM_BAD_POWER_STATE" in page, True, "page")
    s.xenapi.session.logout()


def imported(s, path, *more, **query):
    sr = next(ref for ref, r in s.xenapi.SR.get_all_records().items() if r["shared"] and r["content_type"] == "user")
    return upload(s, path, *more, sr_id=sr, **query)


def roundtrip(name, use_compression="", more=(), how=()):
    s = login()
    vm = vm_named(s, 'Büro/"ERP": *Köln*? <ß>')
    path = export(s, vm, name + ".1", use_compression=use_compression)
    new = imported(s, path, *more)
    old, r = s.xenapi.VM.get_record(vm), s.xenapi.VM.get_record(new)
    equal(r["name_label"], old["name_label"], "name")
    equal(r["uuid"] == old["uuid"], False, "same uuid")
    equal(r["power_state"], "Halted", "state")
    again = export(s, new, name + ".2")
    equal(list(content(again)[1].values()), list(content(path, *how)[1].values()), "contents")
    remove(s, new)
    s.xenapi.session.logout()


@check
def import_by_curl():
    roundtrip("upload")


@check
def import_of_gzip():
    roundtrip("uploadgz", "gzip", how=("-z",))


@check
def import_of_zstd_without_expect():
    roundtrip("uploadzst", "zstd", ("-H", "Expect:"), ("--zstd",))


@check
def import_of_an_archive_by_gnu_tar():
    s = login()
    path = export(s, vm_named(s, 'Büro/"ERP": *Köln*? <ß>'), "repack.xva")
    want = list(content(path)[1].values())
    packed = path + ".tar"
    subprocess.run(["tar", "--format=ustar", "-C", path + ".d", "-cf", packed, *members(path)], check=True)
    new = imported(s, packed)
    equal(list(content(export(s, new, "repacked.xva"))[1].values()), want, "contents")
    remove(s, new)
    s.xenapi.session.logout()


@check
def import_that_is_cut():
    s = login()
    path = export(s, vm_named(s, 'Büro/"ERP": *Köln*? <ß>'), "cut.xva")
    os.truncate(path, os.path.getsize(path) - 2 * MIB)
    before = set(s.xenapi.VM.get_all()), set(s.xenapi.VDI.get_all())
    errors = imported(s, path, want="failure")
    equal(errors[0] in ("IMPORT_ERROR_PREMATURE_EOF", "IMPORT_ERROR", "VDI_IO_ERROR"), True, "error %s" % errors)
    equal((set(s.xenapi.VM.get_all()), set(s.xenapi.VDI.get_all())), before, "what is left")
    s.xenapi.session.logout()


@check
def import_in_chunks_is_refused():
    s = login()
    path = export(s, vm_named(s, 'Büro/"ERP": *Köln*? <ß>'), "chunked.xva")
    errors = imported(s, path, "-H", "Transfer-Encoding: chunked", want="failure")
    equal(errors, ["IMPORT_ERROR_CANNOT_HANDLE_CHUNKED"], "error")
    s.xenapi.session.logout()


@check
def raw_disk_there_and_back():
    s = login()
    sr = next(ref for ref, r in s.xenapi.SR.get_all_records().items() if r["shared"] and r["content_type"] == "user")
    path = os.path.join(WORK, "raw")
    with open(path, "wb") as f:
        f.write(os.urandom(3 * MIB + 512))
    task = s.xenapi.task.create("raw", "")
    curl("-T", path, url(MASTER, "/import_raw_vdi", session_id=s.handle, task_id=task, sr_id=sr, format="raw"))
    vdi = xmlrpc.client.loads("<params><param>%s</param></params>" % wait(s, task)["result"])[0][0]
    task = s.xenapi.task.create("raw", "")
    curl("-o", path + ".2", url(MASTER, "/export_raw_vdi", session_id=s.handle, task_id=task, vdi=s.xenapi.VDI.get_uuid(vdi)))
    wait(s, task)
    equal(open(path + ".2", "rb").read() == open(path, "rb").read(), True, "equal contents")
    s.xenapi.session.logout()


@check
def migration_in_the_pool():
    s = login()
    vm = vm_named(s, "web-01", "Running")
    to = s.xenapi.host.get_by_uuid(MEMBER["uuid"])
    s.xenapi.VM.pool_migrate(vm, to, {"live": "true"})
    equal(s.xenapi.VM.get_resident_on(vm), to, "host")
    s.xenapi.session.logout()


@check
def json_by_curl():
    for version in ({"jsonrpc": "2.0"}, {}):
        body = dict(version, method="session.login_with_password", params=[USER, PASSWORD], id=1)
        answer = json.loads(curl("-H", "Content-Type: application/json", "-d", json.dumps(body), MASTER["http"] + "/jsonrpc"))
        body = dict(version, method="VM.get_all_records", params=[answer["result"]], id=2)
        answer = json.loads(curl("-H", "Content-Type: application/json", "-d", json.dumps(body), MASTER["http"] + "/jsonrpc"))
        record = next(iter(answer["result"].values()))
        equal((type(record["VCPUs_max"]), type(record["is_a_template"]), answer["id"]), (int, bool, 2), "types")


if __name__ == "__main__":
    sys.exit(main())
