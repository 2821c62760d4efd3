"""Writes XVA archives as other tools do: ova.xml with few fields, chunks and checksums, tar headers by hand.

It knows nothing of xensim or of the project's own writer; package xml and struct are all it uses.
"""
import hashlib
import struct
import uuid
from xml.sax.saxutils import escape

MIB = 1 << 20
MASK = (1 << 64) - 1
PRIMES = (0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5)
KNOWN = {}


def _turn(x, n):
    return (x << n | x >> 64 - n) & MASK


def _round(acc, lane):
    return _turn((acc + lane * PRIMES[1]) & MASK, 31) * PRIMES[0] & MASK


def xxh64(data):
    """XXH64 with seed 0, as the 16 upper-case digits of an .xxhash file."""
    key = hashlib.sha256(data).digest()
    if key in KNOWN:
        return KNOWN[key]
    p1, p2, p3, p4, p5 = PRIMES
    whole = len(data) // 32 * 32
    h = p5
    if whole:
        acc = [(p1 + p2) & MASK, p2, 0, -p1 & MASK]
        for lanes in struct.iter_unpack("<4Q", data[:whole]):
            acc = [_round(a, lane) for a, lane in zip(acc, lanes)]
        h = sum(_turn(a, n) for a, n in zip(acc, (1, 7, 12, 18))) & MASK
        for a in acc:
            h = ((h ^ _round(0, a)) * p1 + p4) & MASK
    h = (h + len(data)) & MASK
    rest = data[whole:]
    while len(rest) >= 8:
        h = (_turn(h ^ _round(0, struct.unpack_from("<Q", rest)[0]), 27) * p1 + p4) & MASK
        rest = rest[8:]
    if len(rest) >= 4:
        h = (_turn(h ^ struct.unpack_from("<I", rest)[0] * p1 & MASK, 23) * p2 + p3) & MASK
        rest = rest[4:]
    for byte in rest:
        h = _turn(h ^ byte * p5 & MASK, 11) * p1 & MASK
    h = (h ^ h >> 33) * p2 & MASK
    h = (h ^ h >> 29) * p3 & MASK
    KNOWN[key] = "%016X" % (h ^ h >> 32)
    return KNOWN[key]


def entry(name, data, ustar=False):
    """One tar entry: a V7 header unless ustar is wanted."""
    h = bytearray(512)
    h[0:len(name)] = name.encode()
    h[100:124] = b"0000400\0" + b"0000000\0" * 2
    h[124:148] = b"%011o\0%011o\0" % (len(data), 0)
    if ustar:
        h[156:157] = b"0"
        h[257:265] = b"ustar\00000"
    h[148:156] = b" " * 8
    h[148:156] = b"%07o\0" % sum(h)
    return bytes(h) + data + bytes(-len(data) % 512)


def value(v, indent=None, depth=0):
    """A value in XML-RPC as XAPI writes it; other tools indent."""
    line = "" if indent is None else "\n" + " " * (indent * depth)
    if isinstance(v, bool):
        return "<value><boolean>%d</boolean></value>" % v
    if isinstance(v, float):
        return "<value><double>%g</double></value>" % v
    if isinstance(v, list):
        return "<value><array><data>" + "".join(line + value(x, indent, depth + 1) for x in v) + line + "</data></array></value>"
    if isinstance(v, dict):
        members = ("%s<member><name>%s</name>%s</member>" % (line, escape(k), value(x, indent, depth + 1)) for k, x in v.items())
        return "<value><struct>" + "".join(members) + line + "</struct></value>"
    return "<value>%s</value>" % escape(str(v))


class Disk:
    """A disk of an archive: its id there, its bytes and its place in the VM."""

    def __init__(self, ident, data, device, size=None, iso=False):
        self.id, self.data, self.device, self.iso = ident, data, device, iso
        self.size = len(data) if size is None else size

    def chunks(self, empty=(), zeros=False, leave_out=()):
        """Number and bytes of each chunk. Of those that are all zero only the first and last are
        written, unless zeros; before those in empty an empty one is, as to keep firewalls awake."""
        count = (self.size + MIB - 1) // MIB
        number = 0
        for i in range(count):
            if i in empty:
                yield number, b""
                number += 1
            data = self.data[i * MIB:(i + 1) * MIB]
            data += bytes(min(MIB, self.size - i * MIB) - len(data))
            if i not in leave_out and (zeros or any(data) or i in (0, count - 1)):
                yield number, data
            number += 1


VERSION = {
    "hostname": "elsewhere", "date": "2021-11-05", "product_version": "8.2.1", "product_brand": "XCP-ng",
    "build_number": "release/yangtze/master/58", "xapi_major": 1, "xapi_minor": 20, "export_vsn": 2,
}


def ova(disks, vm=(), version=(), vifs=(), indent=None):
    """The ova.xml of a VM: only those fields that a VM needs."""
    vbds = ["Ref:%d" % (200 + i) for i in range(len(disks))]
    links = ["Ref:%d" % (400 + i) for i in range(len(vifs))]
    record = {
        "uuid": str(uuid.uuid4()), "name_label": "from elsewhere", "name_description": "", "is_a_template": False,
        "memory_static_max": 512 * MIB, "memory_static_min": 256 * MIB, "memory_dynamic_max": 512 * MIB,
        "memory_dynamic_min": 512 * MIB, "VCPUs_max": 2, "VCPUs_at_startup": 1, "actions_after_shutdown": "destroy",
        "actions_after_reboot": "restart", "actions_after_crash": "restart", "HVM_boot_policy": "BIOS order",
        "HVM_boot_params": {"order": "c"}, "HVM_shadow_multiplier": 1.0, "platform": {"acpi": "1"},
        "other_config": {"mac_seed": str(uuid.uuid4())}, "VBDs": vbds, "VIFs": links, **dict(vm),
    }
    objects = [("VM", "Ref:0", record)]
    for d, vbd in zip(disks, vbds):
        objects.append(("VBD", vbd, {
            "uuid": str(uuid.uuid4()), "VM": "Ref:0", "VDI": d.id, "userdevice": d.device, "bootable": d.device == "0",
            "mode": "RO" if d.iso else "RW", "type": "CD" if d.iso else "Disk", "empty": False, "other_config": {},
        }))
        objects.append(("VDI", d.id, {
            "uuid": str(uuid.uuid4()), "name_label": "disk " + d.device, "name_description": "", "type": "user",
            "SR": "Ref:91" if d.iso else "Ref:90", "virtual_size": d.size, "location": str(uuid.uuid4()), "VBDs": [vbd],
        }))
    for i, (mac, network) in enumerate(vifs):
        objects.append(("VIF", links[i], {"uuid": str(uuid.uuid4()), "VM": "Ref:0", "network": "Ref:%d" % (500 + i), "MAC": mac, "device": str(i), "MTU": 1500}))
        objects.append(("network", "Ref:%d" % (500 + i), {"uuid": str(uuid.uuid4()), "name_label": network, "bridge": "xenbr7%d" % i}))
    for ident, content in (("Ref:90", "user"), ("Ref:91", "iso")):
        objects.append(("SR", ident, {"uuid": str(uuid.uuid4()), "name_label": "theirs", "type": "ext", "content_type": content}))
    return value({
        "version": {**VERSION, **dict(version)},
        "objects": [{"class": c, "id": i, "snapshot": s} for c, i, s in objects],
    }, indent)


def archive(disks, xml=None, sums="xxhash", ustar=False, order=sorted, wrong=None, **how):
    """A whole archive; wrong is the number of a chunk whose checksum is not its own."""
    out = [entry("ova.xml", (xml or ova(disks)).encode(), ustar)]
    streamed = {d.id: d for d in disks if not d.iso}
    for ident in order(streamed):
        for number, data in streamed[ident].chunks(**how):
            name = "%s/%08d" % (ident, number)
            out.append(entry(name, data, ustar))
            digest = xxh64(data) if sums == "xxhash" else hashlib.sha1(data).hexdigest()
            if number == wrong:
                digest = "0" * len(digest)
            if sums:
                out.append(entry(name + "." + sums, digest.encode(), ustar))
    return b"".join(out) + bytes(1024)
