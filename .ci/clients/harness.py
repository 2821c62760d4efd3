"""What the checks of a running xensim share: os_xenapi, curl and GNU tar in few words.

Arguments of a script with checks: the line that xensim prints when it is ready, and
a folder for files. Every check is independent; the last line counts them.
"""
import hashlib
import json
import os
import subprocess
import sys
import time
import traceback
import urllib.parse
import xmlrpc.client

from os_xenapi.client import XenAPI

INFO = json.loads(sys.argv[1])
WORK = sys.argv[2]
MASTER = next(h for h in INFO["hosts"] if h["master"])
MEMBER = next(h for h in INFO["hosts"] if not h["master"])
USER, PASSWORD = INFO["username"], INFO["password"]
MIB = 1 << 20
CHECKS = []


def check(f):
    CHECKS.append(f)
    return f


def equal(got, want, what=""):
    if got != want:
        raise AssertionError("%s: %r, but %r was expected" % (what, got, want))


def login(url=None):
    s = XenAPI.Session(url or MASTER["http"])
    s.login_with_password(USER, PASSWORD, "1.1", "clients")
    return s


def failure(f, *args):
    """Calls f, which must fail, and gives the error's code and parameters."""
    try:
        f(*args)
    except XenAPI.Failure as e:
        return e.details
    raise AssertionError("the call succeeded")


def wait(s, task, want="success"):
    """Polls a task as XenAPI users do, destroys it and gives its record."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        record = s.xenapi.task.get_record(task)
        if record["status"] != "pending":
            s.xenapi.task.destroy(task)
            equal(record["status"], want, "task with %s" % record["error_info"])
            return record
        time.sleep(0.05)
    raise AssertionError("the task did not end")


def vm_named(s, name, state="Halted"):
    for ref in s.xenapi.VM.get_by_name_label(name):
        r = s.xenapi.VM.get_record(ref)
        if r["power_state"] == state and not r["is_a_snapshot"]:
            return ref
    raise AssertionError("no %s VM %s" % (state, name))


def disks(s, vm):
    """The VDIs of a VM in order of their userdevice, CDs left out."""
    found = []
    for ref in s.xenapi.VM.get_VBDs(vm):
        vbd = s.xenapi.VBD.get_record(ref)
        if vbd["type"] == "Disk":
            found.append((vbd["userdevice"], vbd["VDI"]))
    return [vdi for _, vdi in sorted(found)]


def remove(s, vm):
    """Destroys a VM and its disks. Hosts detach a disk from dom0 only some time after a transfer has ended."""
    vdis = disks(s, vm)
    s.xenapi.VM.destroy(vm)
    for vdi in vdis:
        end = time.monotonic() + 30
        while True:
            try:
                s.xenapi.VDI.destroy(vdi)
                break
            except XenAPI.Failure as e:
                if e.details[0] != "VDI_IN_USE" or time.monotonic() > end:
                    raise
                time.sleep(0.05)


def curl(*args, ok=True):
    p = subprocess.run(["curl", "-sS", "--max-time", "60", *args], capture_output=True, text=True, check=False)
    if ok and p.returncode != 0:
        raise AssertionError("curl: " + p.stderr)
    return p.stdout


def url(host, path, scheme="http", **query):
    return "%s%s?%s" % (host[scheme], path, urllib.parse.urlencode(query))


def export(s, vm, name, host=MASTER, scheme="http", more=(), **query):
    """Exports with curl into a file and gives its path; the task must succeed."""
    out = os.path.join(WORK, name)
    task = s.xenapi.task.create("export of " + name, "")
    curl(*more, "-o", out, url(host, "/export", scheme, ref=vm, session_id=s.handle, task_id=task, **query))
    wait(s, task)
    return out


def upload(s, path, *more, want="success", **query):
    """Imports a file with curl -T and gives the new VM, or the task's errors."""
    task = s.xenapi.task.create("import", "")
    curl(*more, "-T", path, url(MASTER, "/import", session_id=s.handle, task_id=task, **query), ok=False)
    record = wait(s, task, want)
    if want != "success":
        return record["error_info"]
    return xmlrpc.client.loads("<params><param>%s</param></params>" % record["result"])[0][0][0]


def members(path, *how):
    """GNU tar's listing of an archive."""
    p = subprocess.run(["tar", *how, "-tf", path], capture_output=True, text=True, check=True)
    equal(p.stderr, "", "tar")
    return p.stdout.split()


def content(path, *how):
    """Lets GNU tar extract an archive and gives the SHA-256 of each disk by its folder."""
    folder = path + ".d"
    os.mkdir(folder)
    subprocess.run(["tar", *how, "-C", folder, "-xf", path], check=True)
    ova = xmlrpc.client.loads("<params><param>%s</param></params>" % open(folder + "/ova.xml", encoding="utf8").read())[0][0]
    sizes = {o["id"]: int(o["snapshot"]["virtual_size"]) for o in ova["objects"] if o["class"] == "VDI"}
    sums = {}
    for d in sorted(e for e in os.listdir(folder) if e != "ova.xml"):
        disk, last, pos = {}, -1, 0
        chunks = [c for c in sorted(os.listdir(os.path.join(folder, d))) if "." not in c]
        for c in chunks:
            data = open(os.path.join(folder, d, c), "rb").read()
            pos += (int(c) - last - 1) * MIB
            disk[pos] = data
            pos, last = pos + len(data), int(c)
        equal(pos, sizes[d], "size of " + d)
        whole = bytearray(pos)
        for at, data in disk.items():
            whole[at:at + len(data)] = data
        sums[d] = hashlib.sha256(whole).hexdigest()
    return ova, sums


def main():
    failed = 0
    for f in CHECKS:
        start = time.monotonic()
        try:
            f()
            print("ok   %-40s %.1f s" % (f.__name__.replace("_", " "), time.monotonic() - start))
        except Exception:  # every check must run, whatever happens in one
            failed += 1
            print("FAIL " + f.__name__.replace("_", " "))
            traceback.print_exc(file=sys.stdout)
    print("%d passed, %d failed" % (len(CHECKS) - failed, failed))
    return failed > 0 or not CHECKS
