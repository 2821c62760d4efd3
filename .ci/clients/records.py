"""Holds every record of every class against the data model, in both protocols and for old and new hosts.

It speaks XML-RPC and JSON-RPC by itself, so that it sees how a value was written and not
only what a client makes of it. Arguments: the program xensim and the table of the data model.
"""
import http.client
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
import xmlrpc.client

XENSIM, TABLE = sys.argv[1:3]
API = {"6.5": "2.3", "7.0": "2.5", "7.1": "2.6", "7.6": "2.11", "8.0": "2.12", "8.1": "2.14", "8.2": "2.15", "8.3": "2.21", "8.4": "2.21"}
NULL = "OpaqueRef:NULL"
REF = re.compile(r"OpaqueRef:[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")
DATE = re.compile(r"\d{8}T\d\d:\d\d:\d\dZ$")
INVERSE = """VM.VBDs VBD.VM, VM.VIFs VIF.VM, VM.consoles console.VM, VM.VTPMs VTPM.VM, VM.snapshots VM.snapshot_of,
VM.children VM.parent, VDI.VBDs VBD.VDI, VDI.snapshots VDI.snapshot_of, SR.VDIs VDI.SR, SR.PBDs PBD.SR, host.PBDs PBD.host,
host.PIFs PIF.host, host.resident_VMs VM.resident_on, network.VIFs VIF.network, network.PIFs PIF.network, task.subtasks task.subtask_of"""


def version(api):
    return tuple(int(n) for n in api.split("."))


class Model:
    """The table: fields of each class with type, release and default, and the enums."""

    def __init__(self, path):
        self.releases, self.classes, self.enums = {}, {}, {}
        with open(path, encoding="utf8") as f:
            rows = [line.rstrip("\n").split("\t") for line in f if not line.startswith("#")]
        for row in rows:
            if row[0] == "release":
                self.releases[row[1]] = version(row[2])
            elif row[0] == "class":
                name = row[1]
                self.classes[name] = {"since": row[2], "fields": {}}
            elif row[0] == "f":
                self.classes[name]["fields"][row[1]] = (row + ["-"] * 6)[2:7]
            elif row[0] == "e":
                self.enums[row[1]] = row[2].split()

    def has(self, api, since):
        # Releases after the code names are versions of xapi, which only the newest hosts have.
        return self.releases.get(since, (2, 20)) <= api

    def fields(self, name, api):
        return {f: r for f, r in self.classes[name]["fields"].items() if self.has(api, r[2])}


MODEL = Model(TABLE)
if len(MODEL.classes) < 20 or len(MODEL.classes["VM"]["fields"]) < 80:
    sys.exit("the table of the data model was not understood")


class Problems(set):
    def __call__(self, *what):
        text = " ".join(str(w) for w in what)[:300]
        if text not in self:
            self.add(text)
            print("FAIL " + text)


bad = Problems()


def typed(element):
    """A <value> as (tag, content); text without a tag is ("", text)."""
    if len(element) == 0:
        return "", element.text or ""
    kind = element[0]
    if kind.tag == "array":
        return "array", [typed(v) for v in kind.find("data")]
    if kind.tag == "struct":
        return "struct", {m.find("name").text or "": typed(m.find("value")) for m in kind}
    return kind.tag, kind.text or ""


class Pool:
    def __init__(self, *flags):
        self.process = subprocess.Popen([XENSIM, "--speedup", "20", *flags], stdout=subprocess.PIPE)
        info = json.loads(self.process.stdout.readline())
        self.address = next(h["http"] for h in info["hosts"] if h["master"]).split("//")[1].strip("/")
        self.session = self.json("session.login_with_password", info["username"], info["password"])

    def close(self):
        self.process.terminate()
        self.process.wait()

    def post(self, path, body, content_type):
        c = http.client.HTTPConnection(self.address, timeout=60)
        c.request("POST", path, body, {"Content-Type": content_type})
        r = c.getresponse()
        if (r.status, r.getheader("Content-Type")) != (200, content_type):
            bad(path, "answered", r.status, r.getheader("Content-Type"))
        data = r.read()
        c.close()
        return data

    def json(self, method, *params):
        call = {"jsonrpc": "2.0", "id": 7, "method": method, "params": params}
        answer = json.loads(self.post("/jsonrpc", json.dumps(call).encode(), "application/json"))
        if "error" in answer:
            raise xmlrpc.client.Fault(1, [answer["error"]["message"], *answer["error"]["data"]])
        return answer["result"]

    def call(self, method, *params):
        return self.json(method, self.session, *params)

    def xml(self, method, *params):
        body = xmlrpc.client.dumps((self.session, *params), method).encode()
        tag, answer = typed(ET.fromstring(self.post("/RPC2", body, "text/xml")).find("params/param/value"))
        if (tag, answer["Status"]) != ("struct", ("", "Success")):
            raise xmlrpc.client.Fault(1, str(answer))
        return answer["Value"]

    def records(self, name):
        return self.call(name + ".get_all_records")


def compare(where, kind, xml, js, refs):
    """One value as XML-RPC and as JSON against its type in the model."""
    tag, text = xml
    if kind.endswith(" set"):
        if tag != "array" or not isinstance(js, list) or len(text) != len(js):
            return bad(where, "is no set:", xml, js)
        for a, b in zip(text, js):
            compare(where, kind[:-4], a, b, refs)
    elif kind.endswith(" map"):
        key, element = kind[1:-5].split(" -> ")
        if tag != "struct" or not isinstance(js, dict) or set(text) != set(js):
            return bad(where, "is no map:", xml, js)
        for k in js:
            compare(where + " key", "int key" if key == "int" else key, ("", k), k, refs)
            compare(where, element, text[k], js[k], refs)
    elif kind == "int":
        if tag != "" or not isinstance(js, int) or isinstance(js, bool) or text != str(js):
            bad(where, "is no int:", xml, js)
    elif kind == "int key":
        if not re.fullmatch(r"-?\d+", js):
            bad(where, "is no int:", js)
    elif kind == "float":
        if tag != "double" or not isinstance(js, float) or float(text) != js:
            bad(where, "is no float:", xml, js)
    elif kind == "bool":
        if tag != "boolean" or not isinstance(js, bool) or text != "01"[js]:
            bad(where, "is no bool:", xml, js)
    elif kind == "datetime":
        if tag != "dateTime.iso8601" or text != js or not DATE.match(js):
            bad(where, "is no date:", xml, js)
    elif tag != "" or not isinstance(js, str) or text != js:
        bad(where, "is no", kind + ":", xml, js)
    elif kind.startswith("enum ") and js not in MODEL.enums[kind[5:]]:
        bad(where, "is no", kind + ":", js)
    elif kind.endswith(" ref") and js not in ("", NULL):
        if not REF.match(js):
            bad(where, "is no reference:", js)
        elif js not in refs.get(kind[:-4], [js]):
            bad(where, "names nothing:", js)


def check_records(pool, product):
    api, count, seen = version(API[product]), 0, {}
    methods = set(pool.json("system.listMethods"))
    classes = [c for c in MODEL.classes if c + ".get_all_records" in methods]
    for c in ("VM", "VDI", "VBD", "VIF", "SR", "PBD", "host", "pool", "network", "PIF", "task", "message", "console"):
        if c not in classes:
            bad(product, "does not list", c)
    refs = {c: set(pool.call(c + ".get_all")) for c in classes}
    for c in classes:
        js, (_, xml) = pool.records(c), pool.xml(c + ".get_all_records")
        seen[c] = js
        if set(js) != set(xml):
            bad(product, c, "differs in number:", len(js), len(xml))
            continue
        want = MODEL.fields(c, api)
        for ref, record in js.items():
            count += 1
            if set(record) != set(want) or set(xml[ref][1]) != set(want):
                bad(product, c, "has other fields:", set(record) ^ set(want))
                continue
            for f, (kind, *_) in want.items():
                compare("%s: %s.%s" % (product, c, f), kind, xml[ref][1][f], record[f], refs)
    for pair in INVERSE.replace("\n", " ").split(","):
        (c, f), (d, g) = (side.split(".") for side in pair.split())
        if c in seen and d in seen:
            for ref, record in seen[c].items():
                if set(record.get(f, ())) != {r for r, o in seen[d].items() if o.get(g) == ref} and f in MODEL.fields(c, api):
                    bad(product, c + "." + f, "and", d + "." + g, "disagree")
    return count


def check_defaults(pool, product):
    """What a record with little in it becomes: the model's defaults."""
    api = version(API[product])
    sr = next(iter(pool.records("pool").values()))["default_SR"]
    vm = pool.call("VM.create", {"name_label": "x", "is_a_template": False, "memory_static_max": 1 << 29, "VCPUs_max": 1})
    vdi = pool.call("VDI.create", {"SR": sr, "virtual_size": 1 << 21, "type": "user"})
    network = pool.call("network.create", {"name_label": "n"})
    made = {
        "VM": vm, "VDI": vdi, "network": network,
        "VBD": pool.call("VBD.create", {"VM": vm, "VDI": vdi, "userdevice": "0", "type": "Disk", "mode": "RW"}),
        "VIF": pool.call("VIF.create", {"VM": vm, "network": network, "device": "0", "MAC": ""}),
        "task": pool.call("task.create", "l", "d"),
    }
    given = {"allowed_operations", "other_config", "name_label", "name_description", "metrics", "SR", "virtual_size", "type", "VM", "VDI", "network",
             "userdevice", "mode", "device", "MAC", "bridge", "location", "memory_static_max", "VCPUs_max", "MAC_autogenerated"}
    for c, ref in made.items():
        record = pool.call(c + ".get_record", ref)
        for f, (_, _, _, _, default) in MODEL.fields(c, api).items():
            if default == "-" or f in given:
                continue
            want = {"": NULL, '""': "", "{}": None, "true": True, "false": False}.get(default, default.strip('"'))
            got = record[f]
            if isinstance(got, (int, float)) and not isinstance(got, bool):
                want = type(got)(want)
            if got != want and not (want is None and got in ([], {})) and not (got == NULL and want == ""):
                bad(product, "the default of", c + "." + f, "is", repr(default), "but a new one has", repr(got))


def main():
    for product in API:
        for flags in (["--scenario", "demo", "--disk-size", "4MiB"], ["--vms", "3", "--disk-size", "4MiB"]):
            pool = Pool("--product-version", product, *flags)
            try:
                running = next(r for r, v in pool.records("VM").items() if v["power_state"] == "Running" and not v["is_control_domain"])
                pool.call("VM.snapshot", running, "s")
                pool.call("VM.checkpoint", running, "c")
                pool.call("message.create", "X", 5, "VM", pool.call("VM.get_uuid", running), "b")
                check_defaults(pool, product)
                count = check_records(pool, product)
                if count < 80:
                    bad(product, "has only", count, "records")
                print("ok   %d records of %s %s" % (count, product, flags[1]))
            finally:
                pool.close()
    return len(bad) > 0


if __name__ == "__main__":
    sys.exit(main())
