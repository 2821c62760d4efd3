// Package xapi is the client of XAPI, the API of XenServer and its siblings: XML-RPC calls, and the streams of /export
// and /import.
//
// Calls go through github.com/terra-farm/go-xen-api-client v0.0.2, which nothing outside this package sees. Its
// Client.APICall writes the request and runs it; what it cannot do is done around it:
//
//   - It knows no context, reads replies without a bound, loops or panics (in a goroutine of its own) on malformed
//     ones, trims strings and keeps three words of a failure. So each of its clients is given a transport of ours,
//     which runs the exchange under the caller's context, reads a bounded reply, and decodes it here; the library
//     sees an empty success only. See lane.go.
//   - It runs the calls on one client one after another. So a few clients are kept, and long calls are made as
//     Async.* with a task that is polled.
//   - Its typed records refuse enum values newer than 2018. So the fields that are used are decoded here; unknown
//     fields and values are let pass, missing ones are zero.
//   - It does not escape the names of struct members and has no format for times. So names are escaped before, and
//     integers and times are sent as strings, which XAPI takes everywhere.
//
// EOF of an export says nothing about its success, nor does the 200 of an import: only the task does. Nothing from a
// peer makes this package panic or take memory without bound.
package xapi
