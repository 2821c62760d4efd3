package xapi

import (
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
)

// oddities are pieces of replies in which XML's rules show, whether they are refused or not.
var oddities = []string{
	"<value a='b'>x</value>", `<value a="b" c = 'd"'>x</value>`, "<value a>x</value>", "<value a=b>x</value>", "<value a='<'>x</value>",
	"<value a='&amp;&#65;'>x</value>", "<value a='&b;'>x</value>", "<value a='\x01'>x</value>", "<value a='1'b='2'/>", "<value a=']]>'/>",
	"<value  >x</value\n>", "<value>x</ value>", "<value>x</value", "<value>x</val>", "<value>x</values>", "</value>", "<value/ >", "< value/>",
	"<a:value>x</a:value>", "<a:value>x</value>", "<a:value>x</b:value>", "<:value>x</:value>", "<value:>x</value:>", "<a:b:value/>", "<1value/>",
	"<-/>", "<ä/>", "<value ä='1'/>", "<value>a]]>b</value>", "<value>a]]b]>c</value>", "<value>a]]]</value>", "<value>]]]></value>",
	"<value>a\rb\r\nc\r\r\n</value>", "<value>a&#13;\nb</value>", "<value>\r</value>", "<value>&lt;&gt;&amp;&apos;&quot;</value>",
	"<value>&#65;&#x42;&#x63;&#0000000000067;</value>", "<value>&#0;</value>", "<value>&#x;</value>", "<value>&#;</value>", "<value>&;</value>",
	"<value>&#xD800;</value>", "<value>&#x110000;</value>", "<value>&#xFFFE;</value>", "<value>&#X41;</value>", "<value>&#4294967361;</value>",
	"<value>&lt</value>", "<value>& lt;</value>", "<value>&LT;</value>", "<value>&ä;</value>", "<value>&#6</value>", "<value>&</value>",
	"<value>\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80</value>", "<value>\xc3</value>", "<value>\xed\xa0\x80</value>", "<value>\xef\xbf\xbe</value>",
	"<value>\xef\xbf\xbd</value>", "<value>\x7f</value>", "<value>\x00</value>", "<value>\xc3<!-- -->\xa9</value>", "<value>\xc3&#65;</value>",
	"<value><!----></value>", "<value><!-->--></value>", "<value><!---></value>", "<value><!-- -- --></value>", "<value><!-- ---></value>",
	"<value>a<!-- \xff -->b</value>", "<value><![CDATA[]]></value>", "<value><![CDATA[a]]b]]]></value>", "<value><![CDATA[<&\r\n\r]]>c<![CDATA[]]>d</value>",
	"<value><![CDATA[\xff]]></value>", "<value><![CDATA[a</value>", "<value><![CDAT[a]]></value>", "<value><![--a--></value>", "<value><!-[CDATA[a]]></value>",
	"<value><!a></value>", "<value><!></value>", "<value><?pi x?>y</value>", "<value><?pi?>y</value>", "<value><??></value>", "<value><?pi</value>",
	"<value>\u0085\u00a0<int>1</int>\u2003</value>", "<value> <string> x </string> </value>", "<value><i8> 9223372036854775808 </i8></value>",
	"<value><nil>x</nil></value>", "<value><base64>eA==</base64></value>", "<value><double>NaN</double></value>", "<value><boolean> TRUE </boolean></value>",
	"<value><struct>x</struct></value>", "<value><array>x</array></value>", "<value><array><data>x</data></array></value>",
	"<value><array><data/><data/></array></value>", "<value><struct><member><name>a</name><value>1</value></member><member><name>a</name><value>2</value></member></struct></value>",
	"<value><struct><member><name>a<b/></name><value/></member></struct></value>", "<value><struct><member>x<name>a</name><value/></member></struct></value>",
	"<value><struct><member><name>a</name><value/><value/></member></struct></value>", "<value><struct><member><name>a</name>x<value/></member></struct></value>",
}

// heads and tails are what may stand around a reply.
var (
	heads = []string{"", "\n", "\ufeff", "<!-- c -->", "<?pi?>", "<?xml version='1.0' encoding=\"utf-8\"?>\n", "<?xml version=\"1.0\" encoding='UTF-8' standalone='yes'?>",
		"<?xml version=\"1.1\"?>", "<?xml version=\"1.0\" encoding=\"latin1\"?>", "<?xml?>", "<?xml encoding='utf-8'?>", "x", "<![CDATA[ ]]>", "<![CDATA[x]]>"}
	tails = []string{"\n", "<!-- c -->", "<?pi?>", "<?xml version=\"1.0\"?>", "x", "<x/>", "</x>", "<![CDATA[ ]]>", "<![CDATA[x]]>", "<!x>", "<!--", "<", "&", "&#32;"}
)

// stricter are the words of refusals that are no bugs of what was read, but of which no host gives occasion.
var stricter = []string{"name of more than", "XML declaration", "element with the name", "attribute without a value", "processing instruction of more"}

// compare reads a reply by the decoder and by its oracle.
func compare(t *testing.T, in string) {
	t.Helper()
	got, err := decodeReply(iotest.HalfReader(strings.NewReader(in)))
	want, wantErr := oracleReply(strings.NewReader(in))
	if err != nil && wantErr == nil {
		for _, word := range stricter {
			if strings.Contains(err.Error(), word) {
				return
			}
		}
	}
	var failure, wantFailure *Error
	switch {
	case (err == nil) != (wantErr == nil), errors.As(err, &failure) != errors.As(wantErr, &wantFailure):
		t.Fatalf("%.300q:\n got %v\nwant %v", in, err, wantErr)
	case fmt.Sprintf("%#v", got) != fmt.Sprintf("%#v", want): // NaN is not equal to itself
		t.Fatalf("%.300q:\n got %#v\nwant %#v", in, got, want)
	case !reflect.DeepEqual(failure, wantFailure):
		t.Fatalf("%.300q:\n got %#v\nwant %#v", in, failure, wantFailure)
	case err != nil && failure == nil && !errors.Is(err, ErrProtocol):
		t.Fatalf("%.300q: error of no kind: %v", in, err)
	}
	_, err = decodeRecords(strings.NewReader(in), map[string]bool{})
	var kept *Error
	if (err == nil) != (wantErr == nil) && !errors.As(err, &kept) {
		t.Fatalf("%.300q, fields dropped:\n got %v\nwant %v", in, err, wantErr)
	}
}

func TestDecodeLikeOracle(t *testing.T) {
	for _, in := range badReplies {
		compare(t, in)
	}
	for _, odd := range oddities {
		compare(t, okHead+odd+okTail)
		nested := "<value><struct><member><name>r</name><value><struct><member><name>f</name>" + odd + "</member></struct></value></member></struct></value>"
		compare(t, okHead+nested+okTail)
		for at := scanBuffer - len(odd) - len(okHead) - 24; at < scanBuffer-len(okHead); at++ { // the buffer's end in the midst of it
			compare(t, okHead+"<value><array><data><!--"+strings.Repeat("x", at)+"-->"+odd+"</data></array></value>"+okTail)
		}
	}
	for _, head := range heads {
		compare(t, head+okHead[strings.Index(okHead, "?>")+2:]+"<value>x</value>"+okTail)
	}
	for _, tail := range tails {
		compare(t, okHead+"<value>x</value>"+okTail+tail)
	}
}

// TestDecodeLikeOracleMixed puts pieces together by chance, and cuts and changes them.
func TestDecodeLikeOracleMixed(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 3000 {
		var b strings.Builder
		b.WriteString(okHead + "<value><array><data>")
		for range rnd.IntN(3) + 1 {
			b.WriteString(oddities[rnd.IntN(len(oddities))])
		}
		b.WriteString("</data></array></value>" + okTail)
		in := []byte(b.String())
		if rnd.IntN(2) == 0 {
			in[len(okHead)+rnd.IntN(len(in)-len(okHead))] = "<>&;/!-[]=\"'? x1\r\n\x00\xc3"[rnd.IntN(20)]
		}
		compare(t, string(in))
	}
}

func FuzzDecodeLikeOracle(f *testing.F) {
	for _, odd := range oddities {
		f.Add(okHead + odd + okTail)
	}
	for _, in := range badReplies {
		f.Add(in)
	}
	f.Fuzz(compare)
}

// TestDecodeRecordsKeeps checks that only the fields that are asked for are kept, of records alone.
func TestDecodeRecordsKeeps(t *testing.T) {
	in := okHead + "<value><struct>" + strings.Repeat("<member><name>ref</name><value><struct><member><name>a</name><value><struct><member><name>b</name><value>kept</value></member></struct></value></member>"+
		"<member><name>b</name><value><struct><member><name>a</name><value><array><data><value><int>1</int></value></data></array></value></member></struct></value></member>"+
		"<member><name>c</name><value>dropped</value></member></struct></value></member>", 2) + "</struct></value>" + okTail
	v, err := decodeRecords(strings.NewReader(in), map[string]bool{"a": true})
	want := map[string]any{"ref": map[string]any{"a": map[string]any{"b": "kept"}}}
	if err != nil || !reflect.DeepEqual(v.Any(), want) {
		t.Errorf("got %#v, %v", v.Any(), err)
	}
	if v, err := decodeRecords(strings.NewReader(strings.Replace(in, "<int>1", "<int>x", 1)), map[string]bool{"a": true}); !errors.Is(err, ErrProtocol) {
		t.Errorf("a fault in a field that is dropped: got %#v, %v", v.Any(), err)
	}
}

// TestDecodeBounds checks that what a host can send without end is bounded.
func TestDecodeBounds(t *testing.T) {
	for name, in := range map[string]string{
		"values":      okHead + "<value><array><data>" + strings.Repeat("<value/>", 1<<10),
		"name":        "<" + strings.Repeat("a", 1<<20),
		"attribute":   "<value " + strings.Repeat("a", 1<<20),
		"reference":   okHead + "<value>&" + strings.Repeat("a", 1<<20),
		"instruction": "<?pi " + strings.Repeat("a", 1<<20),
	} {
		if v, err := decodeReply(strings.NewReader(in)); !errors.Is(err, ErrProtocol) {
			t.Errorf("%s: got %v, %v", name, v.Any(), err)
		}
	}
	d := newDecoder(io.MultiReader(strings.NewReader("<!--"), &xes{n: 64 << 20}, strings.NewReader("--><value/>")))
	if err := d.startOf("value"); err != nil || len(d.buf) != scanBuffer || cap(d.scratch)+cap(d.part) > scanBuffer {
		t.Errorf("a long comment: %v, buffers of %d, %d and %d bytes", err, len(d.buf), cap(d.scratch), cap(d.part))
	}
	if _, err := decodeReply(idleReader{}); !errors.Is(err, io.ErrNoProgress) {
		t.Errorf("a reader that gives nothing: %v", err)
	}
}

// TestBuffersAreLent: a reply takes no buffer of its own, and what was read from it stays when the buffer is another's.
func TestBuffersAreLent(t *testing.T) {
	reply := func(texts ...string) string {
		return okHead + "<value><array><data><value>" + strings.Join(texts, "</value><value>") + "</value></data></array></value>" + okTail
	}
	long := strings.Repeat("one", 500)
	first, err := decodeReply(strings.NewReader(reply("one", "&lt;"+long)))
	if err != nil {
		t.Fatal(err)
	}
	in := reply(strings.Repeat("2", 1000))
	least := uint64(math.MaxUint64) // of many: a pool may lose what it has, to the garbage collector and to the race detector
	for range 100 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		if _, err := decodeReply(strings.NewReader(in)); err != nil {
			t.Fatal(err)
		}
		runtime.ReadMemStats(&after)
		least = min(least, after.TotalAlloc-before.TotalAlloc)
	}
	if least > scanBuffer {
		t.Errorf("%d bytes a reply", least)
	}
	if texts, err := first.Strings(); err != nil || !slices.Equal(texts, []string{"one", "<" + long}) {
		t.Errorf("the first reply has changed: %.200q, %v", texts, err)
	}
}

// xes reads as n times the letter x.
type xes struct{ n int }

func (r *xes) Read(p []byte) (int, error) {
	n := min(len(p), r.n)
	for i := range p[:n] {
		p[i] = 'x'
	}
	if r.n -= n; n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

type idleReader struct{}

func (idleReader) Read([]byte) (int, error) { return 0, nil }

// manyRecords is a reply with the records of n VMs, of the size that XAPI's have.
func manyRecords(n int) string {
	var b strings.Builder
	b.WriteString(okHead + "<value><struct>")
	for i := range n {
		fmt.Fprintf(&b, "<member><name>OpaqueRef:%08d-0000-4000-8000-000000000000</name><value><struct>", i)
		field := func(name, value string) {
			b.WriteString("<member><name>" + name + "</name><value>" + value + "</value></member>")
		}
		for _, name := range []string{"uuid", "name_label", "name_description", "power_state", "affinity", "resident_on", "suspend_VDI"} {
			field(name, fmt.Sprintf("OpaqueRef:%08d-0000-4000-8000-00000000%s", i, "0000"))
		}
		for k := range 70 {
			field(fmt.Sprintf("field_%d_of_the_record", k), []string{"", "<boolean>0</boolean>", "4294967296", "<struct></struct>"}[k%4])
		}
		refs := fmt.Sprintf("<value>OpaqueRef:%08d-1111-4000-8000-000000000000</value>", i)
		field("VBDs", "<array><data>"+refs+refs+"</data></array>")
		field("other_config", "<struct><member><name>folder</name><value>/a &amp; b/Größe</value></member><member><name>base_template_name</name><value>Debian</value></member></struct>")
		field("snapshot_time", "<dateTime.iso8601>19700101T00:00:00Z</dateTime.iso8601>")
		b.WriteString("</struct></value></member>")
	}
	return b.String() + "</struct></value>" + okTail
}

func BenchmarkDecode(b *testing.B) {
	in := manyRecords(500)
	keep := map[string]bool{"uuid": true, "name_label": true, "VBDs": true, "other_config": true, "snapshot_time": true}
	for k := range 30 {
		keep[fmt.Sprintf("field_%d_of_the_record", k)] = true
	}
	for _, c := range []struct {
		name string
		read func(io.Reader) (Value, error)
	}{
		{"fields", func(r io.Reader) (Value, error) { return decodeRecords(r, keep) }},
		{"all", decodeReply},
		{"oracle", oracleReply},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.SetBytes(int64(len(in)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := c.read(strings.NewReader(in)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
