package xapi

import (
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

const okHead = `<?xml version="1.0"?><methodResponse><params><param><value><struct><member><name>Status</name><value>Success</value></member><member><name>Value</name>`
const okTail = `</member></struct></value></param></params></methodResponse>`

func TestDecodeReplyValues(t *testing.T) {
	day := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for in, want := range map[string]any{
		"<value>plain</value>":    "plain",
		"<value/>":                "",
		"<value></value>":         "",
		"<value>  kept  </value>": "  kept  ",
		"<value><string> a&lt;b&amp;c </string></value>":                             " a<b&c ",
		"<value><string/></value>":                                                   "",
		"<value><![CDATA[<raw>]]></value>":                                           "<raw>",
		"<value>Größe<!-- c -->ß</value>":                                            "Größeß",
		"<value>\n <int> 5 </int>\n</value>":                                         int64(5),
		"<value><i4>-1</i4></value>":                                                 int64(-1),
		"<value><i8>9000000000</i8></value>":                                         int64(9000000000),
		"<value><ex:i8>7</ex:i8></value>":                                            int64(7),
		"<value><boolean>1</boolean></value>":                                        true,
		"<value><double>0.25</double></value>":                                       0.25,
		"<value><nil/></value>":                                                      nil,
		"<value><dateTime.iso8601>20260102T03:04:05Z</dateTime.iso8601></value>":     day,
		"<value><dateTime.iso8601>some day</dateTime.iso8601></value>":               "some day",
		"<value><array><data/></array></value>":                                      []any{},
		"<value><array/></value>":                                                    []any{},
		"<value><array><data><value>a</value>\n<value/></data></array></value>":      []any{"a", ""},
		"<value><struct/></value>":                                                   map[string]any{},
		"<value><struct> <member><name/><value>x</value></member> </struct></value>": map[string]any{"": "x"},
		"<value><struct><member><name>a&amp;b</name><value><array><data><value><boolean>0</boolean></value></data></array></value></member></struct></value>": map[string]any{"a&b": []any{false}},
	} {
		for name, r := range map[string]io.Reader{"whole": strings.NewReader(okHead + in + okTail), "bytewise": iotest.OneByteReader(strings.NewReader(okHead + in + okTail))} {
			v, err := decodeReply(r)
			if err != nil || !reflect.DeepEqual(v.Any(), want) {
				t.Errorf("%s, %s: got %#v, %v, want %#v", in, name, v.Any(), err, want)
			}
		}
	}
}

func TestDecodeReplyFailure(t *testing.T) {
	_, err := decodeReply(strings.NewReader(`<methodResponse><params><param><value><struct><member><name>Status</name><value>Failure</value></member>` +
		`<member><name>ErrorDescription</name><value><array><data><value>VM_BAD_POWER_STATE</value><value>OpaqueRef:1</value><value>halted, suspended</value><value>running</value></data></array></value></member></struct></value></param></params></methodResponse>`))
	var e *Error
	if !errors.As(err, &e) || !errors.Is(err, ErrPowerState) || !reflect.DeepEqual(e.Params, []string{"OpaqueRef:1", "halted, suspended", "running"}) {
		t.Errorf("got %v", err)
	}
}

var badReplies = []string{
	"", "nonsense", "<html><body>It works</body></html>", "<methodResponse/>", "<methodResponse><params/></methodResponse>",
	okHead, okHead + "<value>" + okTail, okHead + "<value/>" + okTail + "<more/>", okHead + "<value/>" + okTail + "text",
	okHead + "<value><int>five</int></value>" + okTail, okHead + "<value><int/></value>" + okTail,
	okHead + "<value><boolean>2</boolean></value>" + okTail, okHead + "<value><boolean/></value>" + okTail,
	okHead + "<value><double>x</double></value>" + okTail, okHead + "<value><thing>x</thing></value>" + okTail,
	okHead + "<value>text<int>5</int></value>" + okTail, okHead + "<value><int>5</int>text</value>" + okTail,
	okHead + "<value><int>5</int><int>6</int></value>" + okTail, okHead + "<value><string>a<b/></string></value>" + okTail,
	okHead + "<value><struct><member><value/></member></struct></value>" + okTail,
	okHead + "<value><struct><member><name>a</name></member></struct></value>" + okTail,
	okHead + "<value><struct><value/></struct></value>" + okTail, okHead + "<value><array><data><int>1</int></data></array></value>" + okTail,
	okHead + "<value><array><value>1</value></array></value>" + okTail, okHead + "<value>&unknown;</value>" + okTail,
	`<!DOCTYPE x [<!ENTITY a "b">]>` + okHead + "<value>&a;</value>" + okTail,
	"<methodResponse><fault><value><struct><member><name>faultCode</name><value><int>1</int></value></member><member><name>faultString</name><value>boo</value></member></struct></value></fault></methodResponse>",
	"<methodResponse><fault><value>x</value></fault></methodResponse>", "<methodResponse><params><param><value>bare</value></param></params></methodResponse>",
	"<methodResponse><params><param><value><struct><member><name>Status</name><value>Maybe</value></member></struct></value></param></params></methodResponse>",
	"<methodResponse><params><param><value><struct><member><name>Status</name><value>Failure</value></member></struct></value></param></params></methodResponse>",
	okHead + strings.Repeat("<value><array><data>", 100) + strings.Repeat("</data></array></value>", 100) + okTail,
	okHead + "<value>\x01</value>" + okTail, okHead + "<value>\xff</value>" + okTail,
}

func TestDecodeReplyMalformed(t *testing.T) {
	for _, in := range badReplies {
		if v, err := decodeReply(strings.NewReader(in)); !errors.Is(err, ErrProtocol) {
			t.Errorf("%.200s: got %v, %v", in, v.Any(), err)
		}
	}
	cut := errors.New("cut")
	if _, err := decodeReply(io.MultiReader(strings.NewReader(okHead), iotest.ErrReader(cut))); !errors.Is(err, cut) {
		t.Errorf("the reader's error: got %v", err)
	}
}

func TestDecodeReplyTruncated(t *testing.T) {
	whole := okHead + `<value><struct><member><name>a</name><value><array><data><value>b</value><value><int>1</int></value></data></array></value></member></struct></value>` + okTail
	for i := range len(whole) {
		if v, err := decodeReply(strings.NewReader(whole[:i])); !errors.Is(err, ErrProtocol) {
			t.Fatalf("cut at %d: got %v, %v", i, v.Any(), err)
		}
	}
}

func TestResultText(t *testing.T) {
	for in, want := range map[string]string{
		"": "", "<none/>": "<none/>", "<value>OpaqueRef:1</value>": "OpaqueRef:1", "  <value><string>x</string></value> ": "x", "OpaqueRef:2": "OpaqueRef:2",
		"<value><array><data/></array></value>": "<value><array><data/></array></value>", "<value": "<value", "<value/>": "",
	} {
		if got := resultText(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

func TestImportedRefs(t *testing.T) {
	for in, want := range map[string][]Ref{
		"<value><array><data><value>OpaqueRef:a</value><value>OpaqueRef:NULL</value></data></array></value>": {"OpaqueRef:a"},
		"<value>OpaqueRef:b</value>":             {"OpaqueRef:b"},
		"<value/>":                               nil,
		"":                                       nil,
		"OpaqueRef:c, OpaqueRef:NULL":            {"OpaqueRef:c"},
		"<value><array><data><value>OpaqueRef:d": {"OpaqueRef:d"},
		"[\"OpaqueRef:e\"]":                      {"OpaqueRef:e"},
	} {
		if got := importedRefs(in); len(got) != len(want) || len(got) > 0 && !reflect.DeepEqual(got, want) {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

func FuzzDecodeReply(f *testing.F) {
	for _, s := range badReplies {
		f.Add(s)
	}
	f.Add(okHead + "<value><struct><member><name>a</name><value><i8>1</i8></value></member></struct></value>" + okTail)
	f.Fuzz(func(t *testing.T, in string) {
		v, err := decodeReply(strings.NewReader(in))
		var e *Error
		if err != nil && !errors.Is(err, ErrProtocol) && !errors.As(err, &e) {
			t.Fatalf("error of no kind: %v", err)
		}
		if rec, err := v.Record(); err == nil {
			for _, decode := range []func(*fields){func(f *fields) { decodeVM(f) }, func(f *fields) { decodeVDI(f) }, func(f *fields) { decodeTask(f) }, func(f *fields) { decodeHost(f) }} {
				fs := &fields{class: "x", rec: rec}
				if decode(fs); fs.err != nil && !errors.Is(fs.err, ErrProtocol) {
					t.Fatalf("field error of no kind: %v", fs.err)
				}
			}
		}
	})
}

func FuzzResult(f *testing.F) {
	f.Add("<value><array><data><value>OpaqueRef:a</value></data></array></value>")
	f.Add("OpaqueRef:x<value>")
	f.Fuzz(func(t *testing.T, in string) {
		for _, r := range importedRefs(in) {
			if r.Null() {
				t.Fatalf("%q gives a null reference", in)
			}
		}
		resultText(in)
		if e := pageError(in); e != nil && e.Code == "" {
			t.Fatal("failure without a code")
		}
	})
}
