// Package xva reads, verifies, writes and rewrites XVA files, the format in
// which XAPI exports a virtual machine and imports it again.
//
// An XVA file is a tar stream (plain, or as a whole under gzip or zstd): first
// ova.xml, one XML-RPC value that describes the machine, then for each disk in
// the lexicographic order of its directory name the chunks that hold data, each
// followed by an entry with its checksum, then two zero blocks. Where a chunk
// belongs on its disk is told by the importer's rule only: see [Reader].
//
// Nothing here trusts its input: sizes are bounded, memory is constant, a
// fault in a file is a [*FormatError] that [IsBad] recognises, and the end of
// the bytes is never taken for the end of the archive.
package xva
