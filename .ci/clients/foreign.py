"""Imports what another tool's XVA writer made, and holds what comes out again against it."""
import gzip
import hashlib
import os
import random
import shutil
import sys
import time
import uuid

from harness import MASTER, WORK, XenAPI, check, content, curl, equal, export, login, main, remove, upload, url, wait
from xva import MIB, Disk, archive, entry, ova, xxh64

RANDOM = random.Random(11)
DATA = [
    RANDOM.randbytes(MIB + 777),
    RANDOM.randbytes(MIB) + bytes(2 * MIB) + RANDOM.randbytes(100),
    bytes(3 * MIB),
    RANDOM.randbytes(70000),
]


def four():
    """Disks of uneven sizes; as strings their ids sort Ref:10, Ref:7, Ref:8, Ref:9."""
    return [Disk(i, data, d) for i, data, d in zip(("Ref:7", "Ref:10", "Ref:8", "Ref:9"), DATA, "0124")]


def file(name, data):
    path = os.path.join(WORK, name)
    with open(path, "wb") as f:
        f.write(data)
    return path


def comes_back(s, vm, disks):
    """Exports a VM and compares each disk, byte for byte by its hash."""
    ova_read, sums = content(export(s, vm, "back.xva"))
    found = {}
    for o in ova_read["objects"]:
        if o["class"] == "VBD" and o["snapshot"]["type"] != "CD":
            found[o["snapshot"]["userdevice"]] = sums[o["snapshot"]["VDI"]]
    shutil.rmtree(os.path.join(WORK, "back.xva.d"))
    want = {d.device: hashlib.sha256(d.data + bytes(d.size - len(d.data))).hexdigest() for d in disks if not d.iso}
    equal(found, want, "disks")


def put(s, name, data, *more, **how):
    """Imports at once: curl would wait a second for a 100 Continue, which hosts never send."""
    return upload(s, file(name, data), "-H", "Expect:", *more, **how)


def taken(data, disks, *more, **query):
    s = login()
    vm = put(s, "in.xva", data, *more, **query)
    comes_back(s, vm, disks)
    remove(s, vm)
    s.xenapi.session.logout()


@check
def hash_of_others():
    equal(xxh64(b""), "EF46DB3751D8E999")
    equal(xxh64(bytes(MIB)), "87D2A1B6E1163EF1")


@check
def every_way_to_write_an_archive():
    disks = four()
    for what, data in {
        "plain": archive(disks),
        "SHA-1": archive(disks, sums="checksum"),
        "ustar headers": archive(disks, ustar=True),
        "indented": archive(disks, ova(disks, indent=2)),
        "chunks of zeros": archive(disks, zeros=True),
        "chunks without data": archive(disks, empty=(1, 2)),
        "no end": archive(disks)[:-1024],
        "a longer end": archive(disks) + bytes(10240),
        "gzip": gzip.compress(archive(disks), 1),
    }.items():
        try:
            taken(data, disks)
        except Exception as e:
            raise AssertionError(what) from e


@check
def padded_disks():
    disks = [Disk("Ref:002", DATA[0], "0", size=2 * MIB)]
    taken(archive(disks), disks)


@check
def cds_are_not_streamed():
    disks = [Disk("Ref:7", DATA[0], "0"), Disk("Ref:9", b"", "3", size=4096, iso=True)]
    taken(archive(disks), disks)


@check
def every_content_length():
    disks = four()[:1]
    for length in (["-H", "Content-Length:"], ["-H", "Content-Length: %d" % (1 << 50), "--max-time", "5"]):
        taken(archive(disks), disks, "-H", "Transfer-Encoding:", *length)


@check
def probe_without_a_body():
    s = login()
    head = curl("-i", "-X", "PUT", "-H", "Content-Length: 0", url(MASTER, "/import", session_id=s.handle))
    equal(head.splitlines()[0], "HTTP/1.1 200 OK", "answer")
    s.xenapi.session.logout()


@check
def identity_of_an_import():
    s = login()
    disks = four()[:1]
    ident, mac = str(uuid.uuid4()), "aa:bb:cc:dd:ee:01"
    data = archive(disks, ova(disks, {"uuid": ident, "tags": ["t"], "blocked_operations": {"destroy": "x"}}, vifs=[(mac, "a net of theirs")]))

    def look(vm):
        r = s.xenapi.VM.get_record(vm)
        vif = s.xenapi.VIF.get_record(r["VIFs"][0])
        return r["uuid"], vif["MAC"], r["version"], s.xenapi.network.get_name_label(vif["network"]), r["tags"], r["blocked_operations"]

    copy = put(s, "own.xva", data)
    equal(look(copy)[0] != ident and look(copy)[1] != mac, True, "a copy has an identity of its own")
    equal(look(copy)[2:], ("0", "a net of theirs", ["t"], {}), "copy")
    remove(s, copy)
    vm = put(s, "own.xva", data, restore="true")
    equal(look(vm)[:3], (ident, mac, "1"), "restored VM")
    equal(put(s, "own.xva", data, want="failure", restore="true")[0], "VM_TO_IMPORT_IS_NOT_NEWER_VERSION", "again")
    vm = put(s, "own.xva", data, restore="true", force="true")
    equal(look(vm)[:3], (ident, mac, "1"), "by force")
    remove(s, vm)
    s.xenapi.session.logout()


@check
def broken_archives():
    s = login()
    disks = four()
    whole = archive(disks)
    lost = [Disk("Ref:7", DATA[0], "0"), Disk("Ref:8", DATA[1], "1")]
    before = sorted(s.xenapi.VM.get_all()), len(s.xenapi.VDI.get_all()), sorted(s.xenapi.network.get_all())
    for what, data, code in (
        ("half of it", whole[:len(whole) // 2], "IMPORT_ERROR_PREMATURE_EOF"),
        ("nothing", b"", "IMPORT_ERROR_PREMATURE_EOF"),
        ("half of a gzip", gzip.compress(whole, 1)[:MIB // 2], "IMPORT_ERROR_PREMATURE_EOF"),
        ("a wrong checksum", archive(disks, wrong=1), "IMPORT_ERROR"),
        ("no checksums", archive(disks, sums=""), "IMPORT_ERROR"),
        ("a last chunk that is missing", archive(lost, leave_out=(1,)), "IMPORT_ERROR"),
        ("disks in another order", archive(disks, order=lambda ids: sorted(ids)[::-1]), "IMPORT_ERROR"),
        ("another file first, in gzip", gzip.compress(entry("x.xml", b"x") + whole, 1), "IMPORT_ERROR_UNEXPECTED_FILE"),
        ("XML that ends", archive(disks, "<value><struct>"), "IMPORT_ERROR"),
        ("an appliance of version 0.1", archive(disks, '<appliance version="0.1"/>'), "IMPORT_ERROR"),
        ("a newer XAPI", archive(disks, ova(disks, version={"xapi_major": 99})), "IMPORT_INCOMPATIBLE_VERSION"),
    ):
        equal(put(s, "broken.xva", data, want="failure")[0], code, what)
    end = time.monotonic() + 20
    while (sorted(s.xenapi.VM.get_all()), len(s.xenapi.VDI.get_all()), sorted(s.xenapi.network.get_all())) != before:
        if time.monotonic() > end:
            raise AssertionError("failed imports left objects behind")
        time.sleep(0.1)
    vm = put(s, "broken.xva", archive(disks, wrong=1), force="true")
    comes_back(s, vm, disks)
    remove(s, vm)
    s.xenapi.session.logout()


@check
def raw_disks_of_uneven_size():
    s = login()
    sr = s.xenapi.pool.get_default_SR(s.xenapi.pool.get_all()[0])
    vdi = s.xenapi.VDI.create({
        "SR": sr, "virtual_size": str(len(DATA[1])), "type": "user", "sharable": False, "read_only": False, "other_config": {}, "name_label": "raw",
    })
    task = s.xenapi.task.create("raw", "")
    curl("-H", "Expect:", "-T", file("raw", DATA[1]), url(MASTER, "/import_raw_vdi", session_id=s.handle, task_id=task, vdi=vdi))
    wait(s, task)
    out = os.path.join(WORK, "raw.out")
    curl("-o", out, url(MASTER, "/export_raw_vdi", session_id=s.handle, vdi=vdi))
    with open(out, "rb") as f:
        equal(f.read() == DATA[1], True, "the same bytes")
    end = time.monotonic() + 30
    while True:
        try:
            s.xenapi.VDI.destroy(vdi)
            break
        except XenAPI.Failure as e:
            if e.details[0] != "VDI_IN_USE" or time.monotonic() > end:
                raise
            time.sleep(0.05)
    s.xenapi.session.logout()


if __name__ == "__main__":
    sys.exit(main())
