// Package staging keeps the staging folder: the folder on a Data Protector client where verified VM exports wait to be
// backed up, and from which they are restored.
//
//	web-01.UUID.online.20261122T203000Z.xva    complete, verified, fsynced, renamed into place
//	web-01.UUID.online.20261122T203000Z.json   its manifest, written after it
//	.dpxen/lock, .dpxen/holder.json            one session at a time, and who it is
//	.dpxen/marker                              proves that the right file system is mounted
//	.dpxen/partial/                            files that are being written
//
// A file under its final name is complete and proven. It gets there by one way only: [Dir.Create] makes a [Partial],
// [Partial.Commit] syncs it, compares length and checksums, renames it without ever overwriting and writes the manifest
// the same way. Whatever fails on the way leaves nothing under a final name; what a crash leaves in .dpxen/partial is
// removed by [Dir.CleanPartials]. A .xva file without a manifest is not a backup.
//
// What is read from the folder may come from anybody: names are parsed strictly, manifests are bounded and carry their own
// digest, symbolic links and irregular files are never followed or opened.
package staging
