package xensim

import (
	"strings"
	"testing"

	"github.com/dpxen/dpxen/internal/xensim/model"
)

// Both sides of a relation must be fields of the model, of the types that mirror
// each other.
func TestInverses(t *testing.T) {
	m := model.Load()
	for from := range inverses {
		class, field, _ := strings.Cut(from, ".")
		inv, ok := inverseOf(class, field)
		if !ok || m.Class(class) == nil || m.Class(inv.class) == nil {
			t.Errorf("%s names no classes", from)
			continue
		}
		one, many := m.Class(class).Field(field), m.Class(inv.class).Field(inv.field)
		if one == nil || many == nil || one.Type.Kind != model.Ref || one.Type.Name != inv.class ||
			many.Type.Kind != model.Set || many.Type.Elem.Name != class {
			t.Errorf("%s and %s do not mirror each other", from, inverses[from])
		}
	}
}
