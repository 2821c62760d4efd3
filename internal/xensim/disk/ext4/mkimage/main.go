// Mkimage makes image.zst of the folder above with the mke2fs of this machine;
// `go generate ./internal/xensim/disk/ext4` runs it.
package main

import (
	"context"
	"log"
	"os"

	"github.com/dpxen/dpxen/internal/xensim/disk/ext4"
)

func main() {
	img, err := ext4.Make(context.Background())
	if err != nil {
		log.Fatal(err)
	}
	packed, err := ext4.Pack(img)
	if err != nil {
		log.Fatal(err)
	}
	if err := os.WriteFile("image.zst", packed, 0o644); err != nil { //nolint:gosec // part of the sources
		log.Fatal(err)
	}
}
