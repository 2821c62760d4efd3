package xmlrpc

import (
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/dpxen/dpxen/internal/xensim/model"
)

func TestAppend(t *testing.T) {
	cases := []struct {
		in   any
		want string
	}{
		{"a<b>&\"\x01\tc", "<value>a&lt;b&gt;&amp;&quot;\tc</value>"},
		{int64(42), "<value>42</value>"},
		{1.0, "<value><double>1</double></value>"},
		{0.25, "<value><double>0.25</double></value>"},
		{1e6, "<value><double>1000000</double></value>"},
		{1e20, "<value><double>1e+20</double></value>"},
		{0.1, "<value><double>0.1</double></value>"},
		{1.0 / 3, "<value><double>0.3333333333333333</double></value>"},
		{true, "<value><boolean>1</boolean></value>"},
		{model.Epoch, "<value><dateTime.iso8601>19700101T00:00:00Z</dateTime.iso8601></value>"},
		{[]string{"x"}, "<value><array><data><value>x</value></data></array></value>"},
		{[]int64{0}, "<value><array><data><value>0</value></data></array></value>"},
		{map[string]string{"b": "2", "a": "1"}, "<value><struct><member><name>a</name><value>1</value></member>" +
			"<member><name>b</name><value>2</value></member></struct></value>"},
		{map[string]string{}, "<value><struct></struct></value>"},
		{nil, "<value></value>"},
		{Int32(7), "<value><i4>7</i4></value>"},
	}
	for _, c := range cases {
		if got := string(Append(nil, c.in)); got != c.want {
			t.Errorf("Append(%#v) = %s, want %s", c.in, got, c.want)
		}
	}
	got := string(AppendFailure(nil, []string{"SESSION_INVALID", "x"}))
	if want := `<?xml version="1.0"?><methodResponse><params><param><value><struct>` +
		`<member><name>Status</name><value>Failure</value></member><member><name>ErrorDescription</name>` +
		`<value><array><data><value>SESSION_INVALID</value><value>x</value></data></array></value></member>` +
		`</struct></value></param></params></methodResponse>`; got != want {
		t.Errorf("failure = %s", got)
	}
}

func TestDecodeCall(t *testing.T) {
	name, params, err := DecodeCall([]byte(`<?xml version='1.0'?>
<methodCall>
 <methodName>VM.x</methodName>
 <params>
  <param><value> plain </value></param>
  <param><value><string>s</string></value></param>
  <param><value><i4>4</i4></value></param><param><value>
     <int>-5</int>
  </value></param>
  <param><value><boolean>1</boolean></value></param>
  <param><value><double>1.5</double></value></param>
  <param><value><dateTime.iso8601>20260101T00:00:00Z</dateTime.iso8601></value></param>
  <param><value><array><data><value/><value><nil/></value></data></array></value></param>
  <param><value><struct><member><name>k</name><value>v</value></member></struct></value></param>
  <param><value/></param>
 </params>
</methodCall>`))
	if err != nil {
		t.Fatal(err)
	}
	want := []any{
		" plain ", "s", int64(4), int64(-5), true, 1.5, model.DateTime("20260101T00:00:00Z"),
		[]any{"", ""}, map[string]any{"k": "v"}, "",
	}
	if name != "VM.x" || !reflect.DeepEqual(params, want) {
		t.Errorf("%s %#v", name, params)
	}
	if _, params, err := DecodeCall([]byte("<methodCall><methodName>a</methodName></methodCall>")); err != nil || len(params) != 0 {
		t.Errorf("a call without params: %v, %v", params, err)
	}
}

func TestDecodeRefuses(t *testing.T) {
	for _, s := range []string{
		"", "<a/>", "<methodCall>", "<methodCall><methodName>x</methodName><params><param></param></params></methodCall>",
		"<methodCall><methodName>x</methodName><params><param><value><int>x</int></value></param></params></methodCall>",
		"<!DOCTYPE a [<!ENTITY b 'c'>]><methodCall/>",
		"<methodCall><methodName>x</methodName><params><param>" + strings.Repeat("<value><array><data>", 100),
	} {
		if _, _, err := DecodeCall([]byte(s)); !errors.Is(err, ErrMalformed) {
			t.Errorf("%.40q: %v", s, err)
		}
	}
}

func FuzzDecodeValue(f *testing.F) {
	f.Add([]byte("<value><struct><member><name>k</name><value>v</value></member></struct></value>"))
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := DecodeValue(b)
		if err != nil {
			return
		}
		if _, err := DecodeValue(Append(nil, v)); err != nil {
			t.Errorf("what was read cannot be written and read again: %v", err)
		}
	})
}

// What clients in other languages send: encodings, a byte order mark, a document
// type, empty arrays.
func TestDecodeForeign(t *testing.T) {
	const name = "<methodCall><methodName>m</methodName><params><param><value>"
	const tail = "</value></param></params></methodCall>"
	for _, c := range []struct {
		in   string
		want any
	}{
		{`<?xml version="1.0" encoding="us-ascii"?>` + name + "a" + tail, "a"},
		{`<?xml version="1.0" encoding="ISO-8859-1"?>` + name + "\xe9" + tail, "é"},
		{"\ufeff" + `<?xml version="1.0" encoding="utf-8"?>` + name + "é" + tail, "é"},
		{"<!DOCTYPE methodCall>" + name + "a" + tail, "a"},
		{name + "<array/>" + tail, []any{}},
		{name + "<array><data/></array>" + tail, []any{}},
		{name + "<![CDATA[<a>]]>&#65;<!-- no -->b" + tail, "<a>Ab"},
		{name + "\n <i8>9007199254740993</i8>\n" + tail, int64(9007199254740993)},
	} {
		if _, got, err := DecodeCall([]byte(c.in)); err != nil || len(got) != 1 || !reflect.DeepEqual(got[0], c.want) {
			t.Errorf("%s: %#v, %v", c.in, got, err)
		}
	}
	for _, in := range []string{
		`<?xml version="1.0" encoding="ebcdic"?>` + name + "a" + tail,
		`<!DOCTYPE m [<!ENTITY a "aaaa">]>` + name + "&a;" + tail,
		name + "&a;" + tail,
	} {
		if _, _, err := DecodeCall([]byte(in)); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", in, err)
		}
	}
}
