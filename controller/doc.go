// Package controller runs dpxen's sessions: it asks the agents what exists, chooses, plans, moves the bytes between agents
// and staging folder, and reports. It is a library: it reads no flags and prints nothing; what happens is told to an
// [Observer], what came of it is in a [Report], and [ExitCode] makes the process's exit code of it.
//
// A session goes through [Controller.Inventory] (what exists), [Selection] (what is meant), [Plan] (what would be done, and
// why not), and its transfers. Before anything on a host is changed, the intent is durable in the session's file
// (STATE/sessions/ID.json), so that whatever dies can be repaired.
package controller
